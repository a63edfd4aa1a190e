"""Compiled steps and evaluations: once for each shape, never with symbols, and as written where not."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ffcv_r50 import optim
from ffcv_r50.data.loader import Batch as Loaded
from ffcv_r50.models.blurpool import blur_strided_convolutions
from ffcv_r50.models.dropout import draw_by_position
from ffcv_r50.training.evaluation import evaluate
from ffcv_r50.training.forward import CompiledForward, Forward
from ffcv_r50.training.losses.cross_entropy import cross_entropy
from ffcv_r50.training.outcomes import Outcomes
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.protocols import Batch, Step
from ffcv_r50.training.step import TrainStep

CPU = torch.device("cpu")
VALUES = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "label_smoothing": 0.1}
SIZE, PARTS = 6, 2


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """What was compiled belongs to code, not to objects: each test begins without any."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 1, stride=2),
        StochasticDepth(0.3, "row"),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    assert blur_strided_convolutions(net) == 1
    return net


def batches(seed: int, px: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    for part in range(PARTS):
        positions = range(part * SIZE, (part + 1) * SIZE)
        images = torch.randint(256, (SIZE, 3, px, px), dtype=torch.uint8, generator=generator)
        targets = torch.randint(5, (SIZE,), generator=generator)
        yield Batch(images, targets, torch.tensor(positions), positions)


def train_step(net: nn.Module, forward: Forward) -> TrainStep:
    return TrainStep(
        net,
        optim.SGD().build(optim.parameter_groups(net, False), momentum=0.9),
        transforms=[],
        loss=cross_entropy,
        averages={},
        precision=Precision("fp32", CPU),
        draws=draw_by_position(net, 1, CPU),
        forward=forward,
        micro_batches=PARTS,
        ranks=1,
        outcomes=Outcomes(SIZE * PARTS, CPU, each=False),
    )


def run_steps(step: TrainStep) -> Iterator[Tensor]:
    """Two epochs of two steps at two resolutions, and back to the first one."""
    for number, px in enumerate((32, 32, 48, 48, 32)):
        yield step(batches(number, px), Step(1, number, 0.0, VALUES))


def run_evaluation(net: nn.Module, forward: Forward) -> tuple[float, ...]:
    """Of 17 images in batches of 6: the last one is smaller."""
    images = torch.randint(256, (17, 40, 40, 3), dtype=torch.uint8)
    labels = torch.arange(17) % 5
    parts = zip(images.split(SIZE), labels.split(SIZE), torch.arange(17).split(SIZE), strict=True)
    batches = itertools.starmap(Loaded, parts)
    precision = Precision("fp32", CPU)
    metrics = evaluate(
        net, batches, num_samples=17, device=CPU, precision=precision, tta="flip", forward=forward
    )
    return metrics.loss, metrics.top_1, metrics.top_5


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_steps_and_evaluations_are_those_as_written(backend: str) -> None:
    """Once for each mode and resolution, each said; what comes again is not compiled again."""
    lines: list[str] = []
    compiled = CompiledForward(CPU, lines.append, backend)
    eager, ours, theirs = Forward(CPU), network(), network()
    step = train_step(ours, compiled)
    for one, two in zip(run_steps(step), run_steps(train_step(theirs, eager)), strict=True):
        torch.testing.assert_close(one, two)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    for _ in range(2):
        torch.manual_seed(1)
        mine = run_evaluation(ours, compiled)
        torch.manual_seed(1)
        assert mine == pytest.approx(run_evaluation(theirs, eager), rel=1e-4)
    said = [line.rpartition(" in ")[0] for line in lines]
    assert said == [
        "compiled training for 6 images of 32 x 32 px",
        "compiled training for 6 images of 48 x 48 px",
        "compiled evaluation for 6 images of 40 x 40 px",
    ]
    with torch.compiler.set_stance("fail_on_recompile"):
        step(batches(0, 32), Step(1, 5, 0.0, VALUES))
        run_evaluation(ours, compiled)


def test_no_size_is_a_symbol() -> None:
    symbols: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[object]) -> object:
        sizes = [size for x in inputs if isinstance(x, Tensor) for size in x.shape]
        symbols.extend(x for x in [*inputs, *sizes] if isinstance(x, torch.SymInt))
        return graph

    forward = CompiledForward(CPU, lambda _: None, backend)
    net = network().eval()
    for px in (32, 48, 64):
        forward(net, torch.zeros(2, 3, px, px, dtype=torch.uint8))
    assert symbols == []


class Branching(nn.Module):
    """What cannot be one graph: Python looks at a value."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        mean: Tensor = x.mean((2, 3))
        return self.linear(mean if mean.sum() > 0 else -mean)


def test_what_cannot_be_compiled_runs_as_written_and_says_so_once() -> None:
    lines: list[str] = []
    forward = CompiledForward(CPU, lines.append, "aot_eager")
    net = Branching()
    for px in (32, 32, 48):
        images = torch.randint(256, (2, 3, px, px), dtype=torch.uint8)
        assert torch.equal(forward(net, images), Forward(CPU)(net, images))
    assert len(lines) == 1
    assert lines[0].startswith("training.compile: torch cannot compile this network (Unsupported: ")
    assert lines[0].endswith("; it runs uncompiled")
    assert "\n" not in lines[0]


def test_an_error_of_the_network_is_not_taken_for_the_compilers() -> None:
    forward = CompiledForward(CPU, lambda _: None, "aot_eager")
    with pytest.raises((RuntimeError, TypeError), match="shape"):
        forward(nn.Sequential(nn.Flatten(), nn.Linear(7, 5)), torch.zeros(2, 3, 8, 8))
