"""One step: what it is made of, in which order, and what it leaves in the state."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import timm.utils.agc
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from ffcv_r50 import models, optim
from ffcv_r50.models.dropout import draw_by_position
from ffcv_r50.optim.clipping import ClippingOptions
from ffcv_r50.optim.clipping.agc import AdaptiveClipping
from ffcv_r50.optim.clipping.global_norm import ClipNorm
from ffcv_r50.optim.clipping.none import Unclipped
from ffcv_r50.optim.clipping.value import ClipValue
from ffcv_r50.training.forward import Forward
from ffcv_r50.training.losses.cross_entropy import cross_entropy
from ffcv_r50.training.outcomes import Outcomes
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.protocols import Average, Batch, Loss, Step, Transform
from ffcv_r50.training.step import TrainStep
from ffcv_r50.training.transforms.normalize import Normalize

CPU = torch.device("cpu")
VALUES = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "label_smoothing": 0.1}
SIZE, PARTS = 6, 3


def at(number: int, **values: float) -> Step:
    return Step(1, number, number / 10, VALUES | values)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    )


def batches(seed: int = 0) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    for part in range(PARTS):
        positions = range(part * SIZE, (part + 1) * SIZE)
        images = torch.randint(256, (SIZE, 3, 8, 8), dtype=torch.uint8, generator=generator)
        targets = torch.randint(5, (SIZE,), generator=generator)
        yield Batch(images, targets, torch.tensor(positions) + 100, positions)


def train_step(
    model: nn.Module,
    transforms: list[Transform] | None = None,
    loss: Loss = cross_entropy,
    averages: dict[str, Average] | None = None,
    clipping: ClippingOptions | None = None,
) -> TrainStep:
    clipping = clipping or Unclipped()
    return TrainStep(
        model,
        optim.SGD().build(optim.parameter_groups(model, True), momentum=0.9),
        transforms=transforms or [],
        loss=loss,
        averages=averages or {},
        precision=Precision("fp32", CPU),
        draws=draw_by_position(model, 1, CPU),
        forward=Forward(CPU),
        micro_batches=PARTS,
        ranks=1,
        outcomes=Outcomes(SIZE * PARTS, CPU, each=False),
        clipping=clipping.build(model, models.classifier(model)),
    )


def test_steps_are_those_of_a_plain_loop() -> None:
    ours, theirs = network(), network()
    step = train_step(ours)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.0, momentum=0.9)
    normalize = Normalize(CPU)
    for number, lr in enumerate((0.1, 0.05, 0.2)):
        values = step(batches(number), at(number, lr=lr))
        optimizer.zero_grad()
        losses = []
        for batch in batches(number):
            logits = theirs(normalize.images(batch.images))
            losses.append(F.cross_entropy(logits, batch.targets, label_smoothing=0.1))
        torch.stack(losses).mean().backward()
        norm = torch.cat([p.grad.flatten() for p in theirs.parameters()]).norm()  # type: ignore[union-attr]
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        expected = torch.stack([torch.stack(losses).mean(), torch.zeros(()), norm])
        torch.testing.assert_close(values[:3], expected)
        torch.testing.assert_close(dict(ours.named_parameters()), dict(theirs.named_parameters()))


@pytest.mark.parametrize(
    "clipping",
    [ClipNorm(at=0.5), ClipValue(at=0.02), AdaptiveClipping(at=0.05)],
    ids=lambda options: type(options).__name__,
)
def test_the_gradient_of_a_step_is_clipped_once(clipping: ClippingOptions) -> None:
    """Torch's and timm's clipping, after the backward passes of all micro-batches."""
    ours, theirs = network(), network()
    step = train_step(ours, clipping=clipping)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.0, momentum=0.9)
    normalize = Normalize(CPU)
    changed = 0
    for number, lr in enumerate((0.1, 0.05, 0.2)):
        norm_before = step(batches(number), at(number, lr=lr))[2]
        optimizer.zero_grad()
        for batch in batches(number):
            logits = theirs(normalize.images(batch.images))
            loss = F.cross_entropy(logits, batch.targets, label_smoothing=0.1)
            (loss / PARTS).backward()
        before = flat_gradient(theirs)
        if isinstance(clipping, ClipNorm):
            nn.utils.clip_grad_norm_(theirs.parameters(), clipping.at)
        elif isinstance(clipping, ClipValue):
            nn.utils.clip_grad_value_(theirs.parameters(), clipping.at)
        else:
            assert isinstance(clipping, AdaptiveClipping)
            body = [*theirs.parameters()][:-2]
            timm.utils.agc.adaptive_clip_grad(body, clipping.at, clipping.eps)
        changed += not torch.equal(flat_gradient(theirs), before)
        torch.testing.assert_close(norm_before, before.norm(), msg="the log's is the one before")
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        torch.testing.assert_close(dict(ours.named_parameters()), dict(theirs.named_parameters()))
    assert changed == 3


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "clipping",
    [Unclipped(), ClipNorm(at=0.5), ClipValue(at=0.02), AdaptiveClipping()],
    ids=lambda options: type(options).__name__,
)
def test_clipping_hides_no_overflow_from_the_scaler(clipping: ClippingOptions) -> None:
    def overflowing(logits: Tensor, targets: Tensor, step: Step) -> Tensor:
        return logits.square().mean() * (math.inf if step.number == 1 else 1.0)

    step = train_step(network(), loss=overflowing, clipping=clipping)
    step.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    assert step(batches(0), at(0))[2].isfinite()
    before = [p.detach().clone() for p in step.network.parameters()]
    assert not step(batches(1), at(1))[2].isfinite()
    assert all(map(torch.equal, before, step.network.parameters()))
    assert step(batches(2), at(2))[2].isfinite()
    assert all(p.isfinite().all() for p in step.network.parameters())
    assert not torch.equal(before[-1], [*step.network.parameters()][-1])


def test_transforms_come_in_order_and_know_the_samples() -> None:
    seen: list[tuple[str, int, list[int], list[int]]] = []

    def noting(name: str) -> Transform:
        def note(batch: Batch, step: Step) -> Batch:
            seen.append((name, step.number, batch.indices.tolist(), [*batch.positions]))
            return batch

        return note

    step = train_step(network(), [noting("first"), Normalize(CPU), noting("last")])
    step(batches(), at(4))
    expected = []
    for part in range(PARTS):
        positions = [*range(part * SIZE, (part + 1) * SIZE)]
        indices = [position + 100 for position in positions]
        expected += [(name, 4, indices, positions) for name in ("first", "last")]
    assert seen == expected


def test_a_loss_of_ones_own_is_what_is_minimised() -> None:
    def to_zero(logits: Tensor, targets: Tensor, step: Step) -> Tensor:
        assert logits.dtype == torch.float32
        return logits.square().mean()

    model = network()
    step = train_step(model, loss=to_zero)
    losses = [step(batches(), at(number, lr=0.05))[0].item() for number in range(20)]
    assert losses[-1] < losses[0] / 5


class Newest:
    """Not an average: the weights and statistics of the last update."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}
        self.steps: list[int] = []

    def update(self, network: nn.Module, step: Step) -> None:
        self.seen = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        self.steps.append(step.number)

    def network(self) -> nn.Module:
        raise AssertionError("nobody evaluates here")

    def state_dict(self) -> dict[str, Any]:
        return dict(self.seen)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state


def test_averages_see_the_finished_step_and_are_in_the_state() -> None:
    newest = Newest()
    step = train_step(network(), averages={"newest": newest})
    for number in range(2):
        step(batches(number), at(number))
    assert newest.steps == [0, 1]
    torch.testing.assert_close(newest.seen, dict(step.network.state_dict()), rtol=0, atol=0)
    other = Newest()
    train_step(network(), averages={"newest": other}).load_state_dict(step.state_dict())
    assert other.seen.keys() == newest.seen.keys()


def test_a_state_from_before_there_were_averages_is_taken() -> None:
    step = train_step(network(), averages={"newest": Newest()})
    state = train_step(network()).state_dict()
    del state["averages"]
    step.load_state_dict(state)


def test_votes_and_norms_come_out_together() -> None:
    step = train_step(network())
    assert step(batches(), at(0), stop=True)[1] == 1
    assert step(batches(), at(1))[1] == 0


@pytest.mark.parametrize("number", [0, 3])
def test_a_loaded_state_goes_on_with_the_same_bits(number: int) -> None:
    straight, broken = (train_step(network()) for _ in range(2))
    for n in range(number):
        straight(batches(n), at(n))
        broken(batches(n), at(n))
    again = train_step(network())
    again.load_state_dict(broken.state_dict())
    for n in range(number, number + 3):
        assert torch.equal(straight(batches(n), at(n)), again(batches(n), at(n)))
    for name, tensor in straight.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name]), name


def test_recomputed_statistics_are_torchs_of_the_same_batches() -> None:
    """``update_bn`` of torch.optim.swa_utils; what is trained keeps its own."""
    trained = network()
    step = train_step(trained)
    step(batches(7), at(0))
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    ours, theirs = network(), network()
    for parameter in [*ours.parameters(), *theirs.parameters()]:
        parameter.data.add_(0.01)
    steps = [at(0), at(1)]
    step.recompute_statistics(ours, itertools.chain(batches(0), batches(1)), steps)
    normalize = Normalize(CPU)
    loader = [normalize.images(b.images) for number in (0, 1) for b in batches(number)]
    update_bn(loader, theirs)
    for name in ("1.running_mean", "1.running_var"):
        torch.testing.assert_close(ours.get_buffer(name), theirs.get_buffer(name))
    torch.testing.assert_close(dict(ours.named_parameters()), dict(theirs.named_parameters()))
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    step(batches(8), at(1))  # which the statistics that were kept advance from
    assert torch.isfinite(trained.get_buffer("1.running_mean")).all()
