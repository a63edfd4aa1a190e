"""Steps whose passes are recorded, by a stand-in for CUDA graphs, against steps as written."""

import copy
import functools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ffcv_r50 import build, distributed, models, optim
from ffcv_r50.config import settings
from ffcv_r50.config.settings import Config
from ffcv_r50.errors import FINISHED, UserError
from ffcv_r50.keyframes import Varying
from ffcv_r50.models.dropout import draw_by_position
from ffcv_r50.optim import SGD, AdamW, Optimizer
from ffcv_r50.optim.clipping.global_norm import ClipNorm
from ffcv_r50.training import graphs
from ffcv_r50.training.averages import AverageOptions
from ffcv_r50.training.averages.ema import Ema
from ffcv_r50.training.forward import Forward
from ffcv_r50.training.graphs import WARM_UP, Graphs
from ffcv_r50.training.losses import LossOptions
from ffcv_r50.training.losses.bce import BinaryCrossEntropy
from ffcv_r50.training.losses.cross_entropy import CrossEntropy, cross_entropy
from ffcv_r50.training.outcomes import Outcomes
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.protocols import Batch, Loss, Step
from ffcv_r50.training.sam import PLAIN, Sam
from ffcv_r50.training.step import TrainStep
from ffcv_r50.training.transforms import BatchOptions
from ffcv_r50.training.transforms.erasing import Erasing
from ffcv_r50.training.transforms.mix import Mix
from ffcv_r50.training.transforms.normalize import Normalize
from tests import ranks
from tests.conftest import REPOSITORY, Dataset
from tests.recording import StandIn

CPU = torch.device("cpu")
CLASSES, SIZE, PARTS, STEPS = 5, 6, 2, 4
SIDES = (16, 24)
"""Of the images of each epoch; the network takes both."""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        StochasticDepth(0.2, "row"),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(32, CLASSES),
    ).to(memory_format=torch.channels_last)  # fmt: skip


def train_step(
    capture: StandIn | None,
    lines: list[str] | None = None,
    *,
    optimizer: Optimizer | None = None,
    transforms: tuple[BatchOptions, ...] = (),
    averages: tuple[AverageOptions, ...] = (),
    loss: LossOptions | None = None,
    own_loss: Loss | None = None,
    sam: Sam = PLAIN,
    frozen: dict[str, Varying] | None = None,
    precision: str = "fp32",
    overlapped: bool = False,
    reduce_bf16: bool = False,
) -> TrainStep:
    net = network()
    parts = optim.Parts(net, frozen, epochs=len(SIDES))
    chosen = [options.build(CLASSES, i << 16) for i, options in enumerate(transforms, 64)]
    return TrainStep(
        net,
        (optimizer or SGD()).build(optim.parameter_groups(net, False, parts=parts), momentum=0.9),
        transforms=[Normalize(CPU), *chosen] if chosen else [],
        loss=own_loss or (loss or CrossEntropy()).build(CLASSES),
        averages={str(options): options.build(network(), STEPS) for options in averages},
        precision=Precision(precision, CPU),
        draws=draw_by_position(net, 1, CPU),
        forward=Forward(CPU),
        micro_batches=PARTS,
        ranks=1,
        outcomes=Outcomes(SIZE * PARTS, CPU, each=True),
        clipping=ClipNorm(at=0.5).build(net, models.classifier(net)),
        sam=sam,
        parts=parts,
        overlapped=overlapped,
        reduce_bf16=reduce_bf16,
        graphs=None
        if capture is None
        else Graphs(capture, (lines if lines is not None else []).append),
    )


def batches(number: int) -> Iterator[Batch]:
    """In memory that is filled again and again, as the loader's is."""
    generator = torch.Generator().manual_seed(number)
    side = SIDES[number // STEPS % len(SIDES)]
    images = torch.empty(SIZE, side, side, 3, dtype=torch.uint8)
    targets = torch.empty(SIZE, dtype=torch.int64)
    for part in range(PARTS):
        images.copy_(torch.randint(256, images.shape, generator=generator))
        targets.copy_(torch.randint(CLASSES, (SIZE,), generator=generator))
        positions = range(part * SIZE, (part + 1) * SIZE)
        yield Batch(images.permute(0, 3, 1, 2), targets, targets, positions)
        images.fill_(0)
        targets.fill_(0)


def at(number: int) -> Step:
    values = {"lr": 0.1 / (1 + number), "momentum": 0.9 - 0.01 * number, "weight_decay": 1e-4}
    return Step(1, number, number / STEPS, {**values, "label_smoothing": 0.1})


def run(step: TrainStep, first: int = 0, end: int = 2 * STEPS) -> list[Tensor]:
    """Steps, and after each epoch what happens between two of them."""
    found = []
    for number in range(first, end):
        found.append(step(batches(number), at(number)).clone())
        if (number + 1) % STEPS == 0:
            for net in step.networks().values():
                step.recompute_statistics(net, batches(number), [at(number)])
                net.eval()
                found.append(net(torch.ones(3, 3, 20, 20)).detach())
    return found


def assert_same(one: TrainStep, two: TrainStep) -> None:
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)


RUNS: dict[str, dict[str, Any]] = {
    "ffcv-imagenet": {},
    "bf16": {"precision": "bf16", "reduce_bf16": True},
    "sums in buckets": {"overlapped": True},
    "torchvision V2": {
        "transforms": (Erasing(), Mix(mixup=Varying(0.2), cutmix=Varying(1.0))),
        "averages": (Ema(half_life=1),),
    },
    "timm A1": {
        "optimizer": AdamW(),
        "loss": BinaryCrossEntropy(target_threshold=0.2),
        "transforms": (Mix(mixup=Varying(0.2), cutmix=Varying(1.0)),),
    },
    "sharpness-aware": {"sam": Sam(rho=Varying(0.5), interval=2)},
    "frozen for a time": {"frozen": {"0": Varying({0: 0, 0.3: 0, 0.5: 1})}},
}


@pytest.mark.parametrize("kind", RUNS)
def test_recorded_passes_compute_what_written_ones_do(kind: str) -> None:
    capture = StandIn(CPU)
    written, recorded = train_step(None, **RUNS[kind]), train_step(capture, **RUNS[kind])
    for value, expected in zip(run(recorded), run(written), strict=True):
        assert torch.equal(value, expected)
    assert_same(recorded, written)
    assert capture.replayed >= 2 * (PARTS * STEPS - WARM_UP) - WARM_UP
    assert capture.recorded == (3 if kind == "frozen for a time" else 2)


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("reduce_bf16", [False, True])
def test_ranks_add_up_the_same_numbers_in_the_same_order(
    monkeypatch: pytest.MonkeyPatch, overlapped: bool, reduce_bf16: bool
) -> None:
    """An all-reduce that a rank leaves out, or begins earlier than another, hangs or mixes up both."""
    summed: list[Tensor] = []

    def begin(values: Tensor) -> Callable[[], None]:
        summed.append(values.clone())
        return lambda: None

    for name in ("begin_all_reduce_sum", "begin_all_reduce_sum_bf16"):
        monkeypatch.setattr(distributed, name, begin)
    found = []
    for capture in (None, StandIn(CPU)):
        run(train_step(capture, overlapped=overlapped, reduce_bf16=reduce_bf16), end=STEPS)
        found.append(summed.copy())
        summed.clear()
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert len(found[0]) >= 2 * STEPS, "gradients, and what became of the images"


@pytest.mark.parametrize("stopped", [1, 3, STEPS, STEPS + 1, 2 * STEPS - 1])
def test_a_run_that_was_stopped_ends_with_the_same_bits(stopped: int) -> None:
    kind = RUNS["torchvision V2"]
    written = train_step(None, **kind)
    before, after = train_step(StandIn(CPU), **kind), train_step(StandIn(CPU), **kind)
    run(written)
    run(before, end=stopped)
    after.load_state_dict(before.state_dict())
    run(after, first=stopped)
    assert_same(after, written)


def test_going_back_to_a_checkpoint_keeps_the_recording() -> None:
    capture = StandIn(CPU)
    written, recorded = train_step(None), train_step(capture)
    run(recorded, end=STEPS - 1)
    run(written, end=1)
    recorded.load_state_dict(copy.deepcopy(written.state_dict()))
    run(recorded, first=1, end=STEPS - 1)
    run(written, first=1, end=STEPS - 1)
    assert_same(recorded, written)
    assert capture.recorded == 1


def test_each_size_is_warmed_up_and_recorded_once_an_epoch() -> None:
    capture, lines = StandIn(CPU), list[str]()
    step = train_step(capture, lines)
    run(step, end=3 * STEPS)
    assert (capture.warmed_up, capture.recorded) == (3 * WARM_UP, 3)
    assert capture.replayed == 3 * (PARTS * STEPS - WARM_UP)
    assert [line.rpartition(" in ")[0] for line in lines] == [
        f"recorded a CUDA graph for {SIZE} images of {side} x {side} px" for side in (16, 24, 16)
    ]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with"),
        torch.OutOfMemoryError("CUDA out of memory."),
    ],
)
def test_what_cannot_be_recorded_runs_as_written(error: Exception) -> None:
    capture, lines = StandIn(CPU), list[str]()
    capture.error = error
    written, fallen_back = train_step(None), train_step(capture, lines)
    run(written)
    run(fallen_back)
    assert_same(fallen_back, written)
    assert capture.warmed_up == WARM_UP
    (line,) = lines
    first = str(error).partition("\n")[0]
    assert line == (
        "training.cuda_graphs: the passes of this network cannot be recorded "
        f"({type(error).__name__}: {first}); they run without"
    )


@pytest.mark.parametrize("name", ["number", "epoch"])
def test_a_loss_that_changes_with_each_step_is_not_recorded_in_silence(name: str) -> None:
    def growing(logits: Tensor, targets: Tensor, step: Step) -> Tensor:
        return cross_entropy(logits, targets, step) * (1 + getattr(step, name))

    (values,) = run(train_step(StandIn(CPU), own_loss=growing), end=1)
    assert values[0].isnan(), "which ends the run"


# ---------------------------------------------------------------------------------------- settings


def load(*words: str) -> Config:
    recipe = f"--config={REPOSITORY}/rcp/rn18_16ep.yaml"
    return settings.load([recipe, "--training.cuda_graphs=1", *words], needs_data=False)


def test_a_cpu_has_none() -> None:
    with pytest.raises(UserError, match=r"^training\.cuda_graphs: needs a GPU; pass --training"):
        build.set_up_torch(load(), CPU)
    build.set_up_torch(load("--training.eval_only=1"), CPU)  # what was trained on a GPU


def test_label_smoothing_has_to_stay() -> None:
    load("--schedule.label_smoothing={0: 0.1, 2: 0.1}")
    with pytest.raises(UserError, match=r"cuda_graphs: would keep the label smoothing of one step"):
        load("--schedule.label_smoothing={0: 0.1, 2: 0.0}")


# ------------------------------------------------------------------------------------ the whole run


def _recording(then: ranks.Hook | None = None) -> None:
    """In each rank, before it trains."""
    graphs.check = lambda device: None
    graphs.CudaCapture = StandIn  # type: ignore[misc, assignment]
    if then:
        then()


@pytest.mark.slow
def test_a_run_that_was_killed_equals_one_without_graphs(dataset: Dataset, tmp_path: Path) -> None:
    without, broken = tmp_path / "without", tmp_path / "broken"
    ended = ranks.run(ranks.arguments(dataset, without), without, ranks=1)
    assert ended.codes == [FINISHED], ended.outputs
    arguments = ranks.arguments(dataset, broken, "--training.cuda_graphs=1")
    kill = functools.partial(_recording, ranks.at_step(6, signal.SIGKILL))
    killed = ranks.run(arguments, broken, ranks=1, hook=kill)
    assert killed.codes == [-signal.SIGKILL], killed.outputs
    continued = ranks.run(arguments, broken, ranks=1, hook=_recording)
    assert continued.codes == [FINISHED], continued.outputs
    for ends, side in ((killed, 32), (continued, 64)):
        assert f"recorded a CUDA graph for 8 images of {side} x {side} px" in ends.outputs[0]
    ranks.assert_same_run(without, broken)
