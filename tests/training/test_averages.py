"""Averages of the weights against torch's own and a brute-force sum."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ffcv_r50.training.averages import AVERAGES
from ffcv_r50.training.averages.ema import Ema, ExponentialMovingAverage
from ffcv_r50.training.protocols import Step

STEPS_PER_EPOCH = 7


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    layers(torch.randn(5, 3, 4, 4))  # statistics other than zeros and ones
    return layers


def at(number: int) -> Step:
    return Step(0, number, number / STEPS_PER_EPOCH, {})


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
    for name, averaged in floats(average.network()).items():
        each = torch.stack([model.state_dict()[name].double() for model in seen])
        expected = torch.einsum("s,s...->...", weights / weights.sum(), each)
        torch.testing.assert_close(averaged.double(), expected, rtol=1e-5, atol=1e-6)
    counts = average.network().state_dict()["1.num_batches_tracked"]
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
    torch.testing.assert_close(floats(ours.network()), floats(theirs.module))


def test_after_one_step_it_is_that_step() -> None:
    average = Ema(half_life=16).build(network(99), 5000)
    average.update(network(1), at(0))
    torch.testing.assert_close(floats(average.network()), floats(network(1)), rtol=0, atol=0)


def test_a_saved_one_goes_on_with_the_same_bits() -> None:
    straight, broken, again = (Ema(half_life=1).build(network(9), 5) for _ in range(3))
    for number in range(3):
        straight.update(network(number), at(number))
        broken.update(network(number), at(number))
    again.load_state_dict(broken.state_dict())
    for number in range(3, 6):
        straight.update(network(number), at(number))
        again.update(network(number), at(number))
    for name, tensor in straight.network().state_dict().items():
        assert torch.equal(tensor, again.network().state_dict()[name]), name


def test_it_has_a_name() -> None:
    assert AVERAGES["ema"] is Ema
