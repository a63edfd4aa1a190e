"""Sharpness-aware steps against a plain loop from the paper, in float64; and what they must not touch."""

import functools
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffcv_r50 import distributed, optim
from ffcv_r50.keyframes import Varying
from ffcv_r50.models.dropout import draw_by_position
from ffcv_r50.training.forward import Forward
from ffcv_r50.training.losses.cross_entropy import cross_entropy
from ffcv_r50.training.outcomes import Outcomes
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.protocols import Batch, Loss, Step
from ffcv_r50.training.sam import PLAIN, Sam, uphill
from ffcv_r50.training.step import TrainStep
from ffcv_r50.training.transforms.normalize import Normalize
from tests import ranks

CPU = torch.device("cpu")
SIZE, PARTS, STEPS, DECAY = 6, 4, 6, 0.01
SHARP = Sam(rho=Varying({0: 0.3, 0.2: 0.3, 0.4: 0.1}), interval=2)
RADII = [0, 0.3, 0, 0.2, 0, 0.1]
"""What SHARP asks for at steps 0 to 5, ten of them an epoch."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    )


def images_and_targets(number: int) -> tuple[Tensor, Tensor]:
    """uint8 [PARTS, SIZE, 3, 8, 8] and int64 [PARTS, SIZE] of a step."""
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(256, (PARTS, SIZE, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return images, torch.randint(5, (PARTS, SIZE), generator=generator)


def batches(number: int, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
    """A rank's part of a step, in memory that is filled anew for each batch, as a loader's is."""
    images, targets = images_and_targets(number)
    images_of_batch, targets_of_batch = torch.empty_like(images[0]), torch.empty_like(targets[0])
    for part in range(rank * PARTS // ranks, (rank + 1) * PARTS // ranks):
        images_of_batch.copy_(images[part])
        targets_of_batch.copy_(targets[part])
        positions = range(part * SIZE, (part + 1) * SIZE)
        yield Batch(images_of_batch, targets_of_batch, torch.tensor(positions), positions)
        targets_of_batch.fill_(-1)


def at(number: int, lr: float = 0.1) -> Step:
    values = {"lr": lr, "momentum": 0.9, "weight_decay": DECAY, "label_smoothing": 0.1}
    return Step(1, number, number / 10, values)


def train_step(
    model: nn.Module,
    sam: Sam,
    ranks: int = 1,
    loss: Loss = cross_entropy,
    overlapped: bool = False,
) -> TrainStep:
    return TrainStep(
        model,
        optim.SGD().build(optim.parameter_groups(model, True), momentum=0.9),
        transforms=[],
        loss=loss,
        averages={},
        precision=Precision("fp32", CPU),
        draws=draw_by_position(model, 1, CPU),
        forward=Forward(CPU),
        micro_batches=PARTS // ranks,
        ranks=ranks,
        outcomes=Outcomes(PARTS * SIZE, CPU, each=False),
        sam=sam,
        overlapped=overlapped,
    )


def reference(radii: list[float]) -> tuple[dict[str, Tensor], list[float]]:
    """Algorithm 1 of the paper in float64: the weights and statistics at the end, the losses."""
    model = network().double()
    conv, norm = model[0], model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.track_running_stats = False  # batch statistics alone; the running ones are kept by hand
    mean, var = torch.zeros(4).double(), torch.ones(4).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=DECAY)
    normalize = Normalize(CPU)
    losses = []

    def gradient() -> float:
        model.zero_grad()
        each = [
            F.cross_entropy(model(part), targets, label_smoothing=0.1)
            for part, targets in zip(parts, targets_of_step, strict=True)
        ]
        loss = torch.stack(each).mean()
        loss.backward()
        return loss.item()

    for number, radius in enumerate(radii):
        images, targets_of_step = images_and_targets(number)
        parts = [normalize.images(part).double() for part in images]
        with torch.no_grad():
            maps = [conv(part) for part in parts]
            mean = 0.9 * mean + 0.1 * torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
            var = 0.9 * var + 0.1 * torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0)
        losses.append(gradient())
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        if radius:
            slopes = [torch.as_tensor(parameter.grad).clone() for parameter in model.parameters()]
            length = math.sqrt(sum(slope.square().sum().item() for slope in slopes))
            with torch.no_grad():
                for parameter, slope in zip(model.parameters(), slopes, strict=True):
                    parameter.add_(slope * (radius / length))
            gradient()
            with torch.no_grad():
                for parameter, weight in zip(model.parameters(), weights, strict=True):
                    parameter.copy_(weight)
        optimizer.step()
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return found | {"1.running_mean": mean, "1.running_var": var}, losses


def assert_as_reference(state: dict[str, Tensor], losses: list[float], radii: list[float]) -> None:
    expected, expected_losses = reference(radii)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name].double(), tensor, rtol=2e-5, atol=2e-6, msg=name)


@pytest.mark.parametrize(("sam", "radii"), [(SHARP, RADII), (Sam(rho=Varying(0.2)), [0.2] * 6)])
def test_steps_are_those_of_the_paper(sam: Sam, radii: list[float]) -> None:
    model = network()
    step = train_step(model, sam)
    losses = [step(batches(number), at(number))[0].item() for number in range(STEPS)]
    assert_as_reference(model.state_dict(), losses, radii)
    assert model.state_dict()["1.num_batches_tracked"] == STEPS
    plain, _ = reference([0] * STEPS)
    difference = (plain["4.weight"] - model.state_dict()["4.weight"]).abs().max()
    assert difference > 100 * 2e-6, "or the comparison says nothing about the method"


def rank(folder: Path) -> None:
    """One of two: half of the parts of each step."""
    with distributed.world(60) as world:
        model = network()
        step = train_step(model, SHARP, world.size, overlapped=True)
        losses = [
            step(batches(number, world.rank, world.size), at(number))[0].item()
            for number in range(STEPS)
        ]
        torch.save((model.state_dict(), losses), folder / f"{world.rank}.pt")


@pytest.mark.slow
def test_two_processes_climb_by_the_gradient_of_both(tmp_path: Path) -> None:
    ranks.run_program(functools.partial(rank, tmp_path), tmp_path, ranks=2, seconds=120)
    states = [torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in range(2)]
    state, losses = states[0]
    assert_as_reference(state, losses, RADII)
    for name, tensor in state.items():
        assert torch.equal(tensor, states[1][0][name]), name


def test_the_weights_come_back_to_the_bit() -> None:
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train_step(model, Sam(rho=Varying(0.05)))(batches(0), at(0, lr=0.0))
    assert all(map(torch.equal, before, model.parameters()))


def test_the_distance_is_rho_whatever_the_gradient_is() -> None:
    model = network()
    kept = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    for scale in (1e-4, 1.0, 2.0**16):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) * scale
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]
        with uphill([*model.parameters()], gradient.norm(), 0.05):
            moved = torch.nn.utils.parameters_to_vector(model.parameters()) - kept
        torch.testing.assert_close(moved.norm(), torch.tensor(0.05), rtol=1e-3, atol=0)
        assert F.cosine_similarity(moved, gradient, 0) > 0.999
    with uphill([*model.parameters()], torch.tensor(0.0), 0.05):
        pass
    assert torch.equal(torch.nn.utils.parameters_to_vector(model.parameters()), kept)


def test_both_passes_drop_the_same() -> None:
    torch.manual_seed(0)
    dropout = nn.Dropout(0.5)
    model = nn.Sequential(nn.Flatten(), dropout, nn.Linear(3 * 64, 5))
    masks: list[Tensor] = []
    step = train_step(model, Sam(rho=Varying(0.1)))
    dropout.register_forward_hook(lambda _module, _args, out: masks.append(out == 0))
    step(batches(0), at(0))
    assert len(masks) == 2 * PARTS
    assert all(map(torch.equal, masks[:PARTS], masks[PARTS:]))
    assert not any(itertools.starmap(torch.equal, itertools.pairwise(masks[:PARTS])))


@pytest.mark.parametrize("part", [1, PARTS + 1], ids=["first pass", "second pass"])
def test_an_overflow_in_either_pass_skips_the_step(part: int) -> None:
    """As fp16 meets them: the scaler sees gradients that are not finite, and the weights stay."""

    def loss(logits: Tensor, targets: Tensor, step: Step) -> Tensor:
        count[0] += 1
        found = cross_entropy(logits, targets, step)
        if count[0] - 1 == part:
            logits.register_hook(lambda gradient: gradient * math.inf)
        return found

    count = [0]
    step = train_step(network(), Sam(rho=Varying(0.1)), loss=loss)
    step.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = [parameter.detach().clone() for parameter in step.network.parameters()]
    values = step(batches(0), at(0))
    assert values[0].isfinite()
    assert not values[2].isfinite()
    assert all(map(torch.equal, before, step.network.parameters()))
    assert step(batches(1), at(1))[2].isfinite()
    assert not torch.equal(before[-1], [*step.network.parameters()][-1])


def test_a_scaled_gradient_climbs_as_far() -> None:
    ours, scaled = network(), network()
    steps = [train_step(model, Sam(rho=Varying(0.1))) for model in (ours, scaled)]
    steps[1].scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for step, number in itertools.product(steps, range(3)):
        step(batches(number), at(number))
    torch.testing.assert_close(dict(ours.named_parameters()), dict(scaled.named_parameters()))


@pytest.mark.parametrize(
    ("sam", "expected"),
    [(PLAIN, [0] * 6), (SHARP, RADII), (Sam(rho=Varying(1), interval=3), [0, 0, 1, 0, 0, 1])],
)
def test_which_steps_are_sharp(sam: Sam, expected: list[float]) -> None:
    assert [sam.radius(at(number)) for number in range(6)] == pytest.approx(expected)
