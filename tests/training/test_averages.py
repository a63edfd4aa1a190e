"""Averages of the weights against torch's own and a brute-force sum; in a run, when they are evaluated."""

import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ffcv_r50.errors import FINISHED
from ffcv_r50.training.averages import AVERAGES, AverageOptions
from ffcv_r50.training.averages.ema import Ema, ExponentialMovingAverage
from ffcv_r50.training.averages.precise_bn import PreciseBatchNorm
from ffcv_r50.training.averages.swa import Swa
from ffcv_r50.training.protocols import Average, Step
from tests import ranks
from tests.conftest import Dataset

STEPS_PER_EPOCH = 7


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    layers(torch.randn(5, 3, 4, 4))  # statistics other than zeros and ones
    return layers


def at(number: int) -> Step:
    return Step(0, number, number / STEPS_PER_EPOCH, {})


def averaged(average: Average) -> nn.Module:
    found = average.network()
    assert found is not None
    return found


def floats(model: nn.Module) -> dict[str, Tensor]:
    return {name: t for name, t in model.state_dict().items() if t.is_floating_point()}


def test_every_step_counts_as_its_age_says() -> None:
    """A step is worth half as much as one that is a half-life younger; the start is worth nothing."""
    average = Ema(half_life=2).build(network(99), STEPS_PER_EPOCH)
    decay = 0.5 ** (1 / (2 * STEPS_PER_EPOCH))
    seen = [network(seed) for seed in range(20)]
    for number, model in enumerate(seen):
        average.update(model, at(number))
    weights = torch.tensor(
        [decay ** (len(seen) - 1 - i) for i in range(len(seen))], dtype=torch.double
    )
    assert torch.isclose(
        weights[-1] / weights[-1 - 2 * STEPS_PER_EPOCH], torch.tensor(2.0).double()
    )
    for name, ours in floats(averaged(average)).items():
        each = torch.stack([model.state_dict()[name].double() for model in seen])
        expected = torch.einsum("s,s...->...", weights / weights.sum(), each)
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)
    counts = averaged(average).state_dict()["1.num_batches_tracked"]
    assert counts == seen[-1].state_dict()["1.num_batches_tracked"]


def test_late_in_a_run_it_is_torchs() -> None:
    """Which begins with its first step's weights; after so many half-lives that is forgotten."""
    decay = 0.5
    ours = ExponentialMovingAverage(network(99), decay)
    theirs = AveragedModel(network(0), multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    for number in range(40):
        model = network(number)
        ours.update(model, at(number))
        theirs.update_parameters(model)
    torch.testing.assert_close(floats(averaged(ours)), floats(theirs.module))


def test_after_one_step_it_is_that_step() -> None:
    average = Ema(half_life=16).build(network(99), 5000)
    average.update(network(1), at(0))
    torch.testing.assert_close(floats(averaged(average)), floats(network(1)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "steps_per_epoch", "saved", "end"),
    [(Ema(half_life=1), 5, 3, 6), (Swa(start=1), 3, 7, 12)],
)
def test_a_saved_one_goes_on_with_the_same_bits(
    options: AverageOptions, steps_per_epoch: int, saved: int, end: int
) -> None:
    """SWA is saved in the middle of its phase."""
    straight, broken, again = (options.build(network(9), steps_per_epoch) for _ in range(3))
    for number in range(saved):
        straight.update(network(number), at(number))
        broken.update(network(number), at(number))
    again.load_state_dict(broken.state_dict())
    for number in range(saved, end):
        straight.update(network(number), at(number))
        again.update(network(number), at(number))
    for name, tensor in averaged(straight).state_dict().items():
        assert torch.equal(tensor, averaged(again).state_dict()[name]), name


def test_swa_is_the_mean_of_the_points() -> None:
    """Start 2 epochs, period half an epoch of 7 steps (4 steps, rounded): after steps 18, 22, 26."""
    average = Swa(start=2, period=0.5).build(network(99), STEPS_PER_EPOCH)
    seen = [network(seed) for seed in range(28)]
    for number, model in enumerate(seen):
        assert (average.network() is None) == (number < 18)
        average.update(model, at(number))
    points = [seen[done - 1] for done in (18, 22, 26)]
    for name, ours in floats(averaged(average)).items():
        each = torch.stack([model.state_dict()[name].double() for model in points])
        torch.testing.assert_close(ours.double(), each.mean(0), rtol=1e-5, atol=1e-6)
    theirs = AveragedModel(points[0])
    for model in points:
        theirs.update_parameters(model)
    torch.testing.assert_close(
        dict(averaged(average).named_parameters()), dict(theirs.module.named_parameters())
    )


def test_precise_bn_is_the_newest_and_keeps_what_was_computed_for_it() -> None:
    average = PreciseBatchNorm().build(network(9), 3)
    average.update(network(1), at(0))
    average.update(network(2), at(1))
    shown = averaged(average)
    torch.testing.assert_close(floats(shown), floats(network(2)), rtol=0, atol=0)
    shown.get_buffer("1.running_mean").fill_(5.0)
    again = PreciseBatchNorm().build(network(9), 3)
    again.load_state_dict(average.state_dict())
    for one in (average, again):
        assert (averaged(one).get_buffer("1.running_mean") == 5.0).all()


def test_they_have_names() -> None:
    assert [AVERAGES[name] for name in ("ema", "swa", "precise_bn")] == [Ema, Swa, PreciseBatchNorm]


@pytest.mark.slow
def test_evaluated_every_few_epochs_they_are_the_same(dataset: Dataset, tmp_path: Path) -> None:
    """Also where the run is killed after an epoch that evaluated the network alone."""
    names = ("ema", "swa", "precise_bn")
    listed = "[{ema: {half_life: 1}}, {swa: {start: 0.5, period: 0.5, images: 20}}, {precise_bn: {images: 20}}]"
    more = ("--training.epochs=3", "--schedule.lr={0: 0.01}", "--schedule.resolution={0: 32}")

    def train(name: str, every: int, *codes: int) -> Path:
        chosen = (f"--averages={listed}", f"--validation.averages_every={every}", *more)
        arguments = ranks.arguments(dataset, tmp_path / name, *chosen, "--checkpoint.weights=swa")
        for code in codes:
            hook = ranks.at_step(ranks.STEPS + 1, signal.SIGKILL) if code < 0 else None
            ended = ranks.run(arguments, tmp_path / name, ranks=1, hook=hook)
            assert ended.codes == [code], ended.outputs
        return tmp_path / name

    each, second = (
        train("each", 1, FINISHED),
        train("second", 2, -signal.SIGKILL, FINISHED),
    )
    for epoch, (full, row) in enumerate(zip(ranks.log(each), ranks.log(second), strict=True)):
        alone = {k: v for k, v in full.items() if not k.startswith(names)}
        assert len(alone) == len(full) - 3 * len(names)
        assert row == (alone if epoch == 0 else full)
    for file in (
        "weights.pt",
        *(f"weights_{name}.pt" for name in ("network", "ema", "precise_bn")),
    ):
        one, two = (torch.load(run / file, weights_only=True) for run in (each, second))
        assert one.keys() == two.keys()
        for key in one:
            assert torch.equal(one[key], two[key]), (file, key)
