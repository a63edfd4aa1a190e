"""Sums over the ranks during the backward pass: complete, in one order on all ranks, early; and bf16."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ffcv_r50 import distributed, optim
from ffcv_r50.keyframes import Varying
from ffcv_r50.models.dropout import draw_by_position
from ffcv_r50.training.forward import CompiledForward, Forward
from ffcv_r50.training.losses.cross_entropy import cross_entropy
from ffcv_r50.training.outcomes import Outcomes
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.protocols import Batch, Step
from ffcv_r50.training.reduction import BUCKETS, StepSums
from ffcv_r50.training.sam import PLAIN, Sam
from ffcv_r50.training.step import TrainStep
from tests import ranks

CPU = torch.device("cpu")
SIZE, PARTS, RANKS = 6, 3, 4
SIDES = (20, 30, 40, 50, 60, 70, 80, 90)
"""Of square parameters: enough of them for all buckets."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.Flatten(),
        nn.Linear(16 * 4, 12),
        nn.ReLU(),
        nn.Linear(12, 12),
        nn.ReLU(),
        nn.Linear(12, 5),
    )


def batches(number: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(number)
    for part in range(PARTS):
        positions = range(part * SIZE, (part + 1) * SIZE)
        images = torch.randint(256, (SIZE, 3, 8, 8), dtype=torch.uint8, generator=generator)
        targets = torch.randint(5, (SIZE,), generator=generator)
        yield Batch(images, targets, torch.tensor(positions), positions)


def train_step(
    model: nn.Module,
    *,
    overlapped: bool,
    sam: Sam = PLAIN,
    forward: Forward | None = None,
    frozen: str = "",
) -> TrainStep:
    parts = optim.Parts(model, {frozen: Varying(0.0)} if frozen else None, epochs=1)
    return TrainStep(
        model,
        optim.SGD().build(optim.parameter_groups(model, True, parts=parts), momentum=0.9),
        transforms=[],
        loss=cross_entropy,
        averages={},
        precision=Precision("fp32", CPU),
        draws=draw_by_position(model, 1, CPU),
        forward=forward or Forward(CPU),
        micro_batches=PARTS,
        ranks=1,
        outcomes=Outcomes(SIZE * PARTS, CPU, each=False),
        sam=sam,
        parts=parts,
        overlapped=overlapped,
    )


def at(number: int) -> Step:
    values = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "label_smoothing": 0.1}
    return Step(1, number, number / 10, values)


class Seen:
    """What is there of each sum when it begins, in place of :mod:`ffcv_r50.distributed`."""

    def __init__(self, model: nn.Module) -> None:
        self.first = next(model.parameters())
        self.begun: list[tuple[Tensor, Tensor, Tensor]] = []
        """The numbers that are summed, a copy of them, and one of the first layer's gradient."""

    def begin_all_reduce_sum(self, tensor: Tensor) -> Callable[[], object]:
        assert self.first.grad is not None
        self.begun.append((tensor, tensor.clone(), self.first.grad.clone()))
        return lambda: None


KINDS = {"plain": (PLAIN, ""), "SAM": (Sam(rho=Varying(0.1)), ""), "frozen": (PLAIN, "7")}


@pytest.mark.parametrize("kind", KINDS)
def test_buckets_begin_whole_and_before_the_backward_pass_is_over(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sam, frozen = KINDS[kind]
    ours, theirs = network(), network()
    step = train_step(ours, overlapped=True, sam=sam, frozen=frozen)
    at_once = train_step(theirs, overlapped=False, sam=sam, frozen=frozen)
    for number in range(2):
        seen = Seen(ours)
        with monkeypatch.context() as patched:
            patched.setattr(distributed, "begin_all_reduce_sum", seen.begin_all_reduce_sum)
            values = step(batches(number), at(number))
        assert torch.equal(values, at_once(batches(number), at(number)))
        passes = 2 if sam.rho.at(0) else 1
        count = len(step._sums._buckets)
        assert count > 2
        noted = seen.begun.pop(count)  # what is noted of the images, after the first pass
        assert len(noted[0]) == 3
        assert len(seen.begun) == count * passes, "in the last micro-batch alone"
        buckets = seen.begun[-count:]
        for summed, when_begun, _ in buckets:
            assert torch.equal(summed, when_begun), "nothing is added to what is under way"
        assert sum(map(len, next(zip(*buckets, strict=True)))) == len(step._sums._buffer)
        first = [first for *_, first in buckets]
        gradient = seen.first.grad
        assert gradient is not None
        assert torch.equal(first[-1], gradient)
        for earlier in first[:-1]:
            assert not torch.equal(earlier, gradient), "the first layer's was still to come"
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


def test_compiled_in_pieces_buckets_begin_early_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    ours, theirs = network(), network()
    seen = Seen(ours)
    monkeypatch.setattr(distributed, "begin_all_reduce_sum", seen.begin_all_reduce_sum)
    lines: list[str] = []
    compiled = CompiledForward(CPU, lines.append, "aot_eager", pieces=4)
    step = train_step(ours, overlapped=True, forward=compiled)
    values = step(batches(0), at(0))
    *buckets, _ = seen.begun
    gradient = seen.first.grad
    assert gradient is not None
    assert not torch.equal(buckets[0][2], gradient), "the first layer's was still to come"
    for summed, when_begun, _ in buckets:
        assert torch.equal(summed, when_begun)
    monkeypatch.undo()
    torch.testing.assert_close(values, train_step(theirs, overlapped=False)(batches(0), at(0)))
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert [line.rpartition(" in ")[0] for line in lines] == [
        "compiled training for 6 images of 8 x 8 px"
    ]


# ---------------------------------------------------------------------------------------- four ranks


def gradients(rank: int, whole: bool) -> list[Tensor]:
    """A rank's, one for each of SIDES: integers, or numbers of many magnitudes."""
    generator = torch.Generator().manual_seed(rank)
    shapes = [(side, side) for side in SIDES]
    if whole:
        return [torch.randint(-9, 10, s, generator=generator).float() for s in shapes]
    return [
        torch.randn(s, generator=generator) * torch.randn(s, generator=generator).exp()
        for s in shapes
    ]


def summed(
    rank: int, given: list[Tensor], *, bf16: bool = False, overlapped: bool = True
) -> Tensor:
    """The sum over the ranks, flat. Each rank's gradients come in an order of its own; the one whose
    number is the rank's does not come at all."""
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in given]
    sums = StepSums(parameters, 3, overlapped=overlapped, bf16=bf16)
    assert len(sums._buckets) == (BUCKETS if overlapped else 1)
    sums.begin(stop=rank == 1)
    sums.loss += rank
    sums.statistics += torch.tensor([1.0, rank, 0.001])
    sums.begin_reduce()
    for place in [*range(rank + 1, len(given)), *range(rank)]:
        (parameters[place] * given[place]).sum().backward()
    sums.reduce()
    others = torch.stack([sums.loss, sums.votes, *sums.statistics])
    found = [p.grad.flatten() for p in parameters if p.grad is not None]
    return torch.cat([others, *found])


CASES = {
    "whole": {"whole": True},
    "whole, at once": {"whole": True, "overlapped": False},
    "bf16": {"bf16": True},
    "bf16, at once": {"bf16": True, "overlapped": False},
    "fp32": {},
}


def rank(folder: Path) -> None:
    """One of four."""
    with distributed.world(60) as world:
        found = {}
        for name, case in CASES.items():
            options = dict(case)
            given = gradients(world.rank, options.pop("whole", False))
            found[name] = summed(world.rank, given, **options)
        # Small numbers beside a large one: rounded at each hop, none of them would count.
        found["small"] = torch.full((1000,), 1.0 if world.rank else 256.0)
        distributed.begin_all_reduce_sum_bf16(found["small"])()
        # Two ranks have numbers: no order of adding them matters.
        pair = gradients(world.rank, whole=False)
        pair = pair if world.rank < 2 else [torch.zeros_like(gradient) for gradient in pair]
        for overlapped in (False, True):
            found[f"pair {overlapped}"] = summed(world.rank, pair, overlapped=overlapped)
        torch.save(found, folder / f"{world.rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What four ranks have."""
    folder = tmp_path_factory.mktemp("four ranks")
    ranks.run_program(functools.partial(rank, folder), folder, ranks=RANKS, seconds=120)
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(RANKS)]


def expected(whole: bool) -> tuple[Tensor, Tensor]:
    """float64: the sum over the ranks, and the sum of the magnitudes."""
    each = [gradients(number, whole) for number in range(RANKS)]
    for number, given in enumerate(each):
        given[number].zero_()
    flat = torch.stack([torch.cat([g.double().flatten() for g in given]) for given in each])
    return flat.sum(0), flat.abs().sum(0)


OTHERS = torch.tensor([0 + 1 + 2 + 3, 1, 4, 0 + 1 + 2 + 3, 0.004])
"""Loss, votes and statistics of four ranks."""


@pytest.mark.slow
def test_the_sums_are_whole_whichever_gradient_comes_first(found: list[dict[str, Tensor]]) -> None:
    exact, _ = expected(whole=True)
    for of_rank in found:
        for name in ("whole", "whole, at once"):
            torch.testing.assert_close(of_rank[name][:5], OTHERS)
            assert torch.equal(of_rank[name][5:].double(), exact), name


@pytest.mark.slow
def test_buckets_change_no_bit_where_the_order_of_adding_is_the_same(
    found: list[dict[str, Tensor]],
) -> None:
    for of_rank in found:
        assert torch.equal(of_rank["pair True"], of_rank["pair False"])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["bf16", "bf16, at once", "fp32"])
def test_the_error_of_a_sum_is_that_of_its_roundings(
    found: list[dict[str, Tensor]], case: str
) -> None:
    """bf16 has 8 bits: rounding moves a number by 2^-8 of it at most. Each rank's are rounded, and the sum."""
    exact, magnitude = expected(whole=False)
    unit = 2.0**-8 if case.startswith("bf16") else 2.0**-24 * RANKS
    for of_rank in found:
        assert torch.equal(of_rank[case], found[0][case]), "the same bits on every rank"
        torch.testing.assert_close(of_rank[case][:5], OTHERS)
        error = (of_rank[case][5:].double() - exact).abs()
        bound = unit * (magnitude + exact.abs()) * 1.01
        assert (error <= bound).all()
        if case.startswith("bf16"):
            assert error.max() > 2.0**-24 * magnitude.max() * RANKS, "or nothing was rounded"


@pytest.mark.slow
def test_bf16_is_added_up_in_float32(found: list[dict[str, Tensor]]) -> None:
    for of_rank in found:
        # 259 between 258 and 260, of which the even one is taken.
        assert of_rank["small"].unique().tolist() == [260.0]
