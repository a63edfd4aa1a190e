"""What only a GPU can show of a step: ``make test-gpu``. Nothing here needs a download."""

import copy
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ffcv_r50 import distributed, models, optim
from ffcv_r50.data import transfer
from ffcv_r50.data.loader import Batch as Loaded
from ffcv_r50.errors import FINISHED
from ffcv_r50.models.batchnorm import GroupBatchNorm
from ffcv_r50.models.dropout import draw_by_position
from ffcv_r50.training.forward import CompiledForward, Forward
from ffcv_r50.training.graphs import WARM_UP, CudaCapture, Graphs
from ffcv_r50.training.losses.cross_entropy import cross_entropy
from ffcv_r50.training.outcomes import Outcomes
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.protocols import Batch, Loss, Step
from ffcv_r50.training.step import TrainStep
from tests import ranks
from tests.conftest import Dataset

DEVICE = torch.device("cuda", 0)
VALUES = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4, "label_smoothing": 0.1}
SIZE, PARTS, CLASSES = 16, 2, 10

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As ``training.deterministic`` sets torch up."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def train_step(
    precision: str = "bf16",
    loss: Loss = cross_entropy,
    forward: Forward | None = None,
    *,
    overlapped: bool = False,
    reduce_bf16: bool = False,
    graphs: Graphs | None = None,
) -> TrainStep:
    torch.manual_seed(0)
    net = models.build("resnet18", CLASSES, blurpool=True, stochastic_depth=0.1).to(DEVICE)
    net = net.to(memory_format=torch.channels_last)
    return TrainStep(
        net,
        optim.SGD().build(optim.parameter_groups(net, False), momentum=0.9),
        transforms=[],
        loss=loss,
        averages={},
        precision=Precision(precision, DEVICE),
        draws=draw_by_position(net, 1, DEVICE),
        forward=forward or Forward(DEVICE),
        micro_batches=PARTS,
        ranks=1,
        outcomes=Outcomes(SIZE * PARTS, DEVICE, each=True),
        overlapped=overlapped,
        reduce_bf16=reduce_bf16,
        graphs=graphs,
    )


def loaded(number: int, px: int) -> Iterator[Loaded]:
    """As the loader has them: on the host, in buffers that are filled again and again."""
    generator = torch.Generator().manual_seed(number)
    images = torch.empty(SIZE, px, px, 3, dtype=torch.uint8).pin_memory()
    labels = torch.empty(SIZE, dtype=torch.int64).pin_memory()
    for _ in range(PARTS):
        images.copy_(torch.randint(256, images.shape, generator=generator))
        labels.copy_(torch.randint(CLASSES, (SIZE,), generator=generator))
        yield Loaded(images, labels, labels)
        images.fill_(0)
        labels.fill_(0)


def batches(number: int, px: int = 64) -> Iterator[Batch]:
    for part, batch in enumerate(transfer.to_device(loaded(number, px), DEVICE)):
        yield Batch(*batch, range(part * SIZE, (part + 1) * SIZE))


def take(step: TrainStep, number: int, px: int = 64) -> Tensor:
    return step(batches(number, px), Step(1, number, 0.0, VALUES)).clone()


def reserved_after_epochs(step: TrainStep, steps: int) -> list[int]:
    """Bytes that torch holds on the GPU after each of ten epochs, at two sizes in turn."""
    reserved = []
    for epoch in range(10):
        for number in range(steps):
            take(step, steps * epoch + number, (64, 96)[epoch % 2])
        torch.cuda.synchronize()
        reserved.append(torch.cuda.memory_reserved())
    return reserved


def state(step: TrainStep) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in step.network.state_dict().items()}


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    for name in one:
        assert torch.equal(one[name], two[name]), name


def test_batches_arrive_whole_while_the_loader_fills_its_buffers_again() -> None:
    for number in range(20):
        generator = torch.Generator().manual_seed(number)
        for batch in batches(number, 224):
            torch.cuda._sleep(1_000_000)  # the device is behind
            shape = (SIZE, 224, 224, 3)
            expected = torch.randint(256, shape, generator=generator).to(torch.uint8)
            labels = torch.randint(CLASSES, (SIZE,), generator=generator)
            assert torch.equal(batch.images.permute(0, 2, 3, 1).cpu(), expected)
            assert torch.equal(batch.targets.cpu(), labels)


def assert_no_wait(step: TrainStep) -> None:
    """The third step raises where it waits for the device."""
    on_device = [[*batches(number)] for number in range(3)]
    for number in range(2):
        step(iter(on_device[number]), Step(1, number, 0.0, VALUES))
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(iter(on_device[2]), Step(1, 2, 0.0, VALUES))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_a_step_does_not_wait_for_the_device(precision: str) -> None:
    assert_no_wait(train_step(precision))


def test_an_overflow_in_the_first_fp16_step_is_skipped() -> None:
    def overflowing(logits: Tensor, targets: Tensor, step: Step) -> Tensor:
        return cross_entropy(logits, targets, step) * (float("inf") if step.number == 0 else 1.0)

    step = train_step("fp16", overflowing)
    before = {name: p.detach().clone() for name, p in step.network.named_parameters()}
    assert not take(step, 0)[2].isfinite()
    assert_same(before, dict(step.network.named_parameters()))
    for number in range(1, 4):
        assert take(step, number)[:3].isfinite().all()
    moved = dict(step.network.named_parameters())
    assert all(p.isfinite().all() for p in moved.values())
    assert not torch.equal(before["fc.weight"], moved["fc.weight"])


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_same_bits_twice_and_after_a_state_was_loaded(precision: str) -> None:
    straight, again, continued = (train_step(precision) for _ in range(3))
    for number in range(3):
        assert torch.equal(take(straight, number), take(again, number))
    assert_same(state(straight), state(again))
    on_host = {key: value for key, value in again.state_dict().items() if key != "model"}
    continued.load_state_dict({**on_host, "model": {k: v.cpu() for k, v in state(again).items()}})
    for number in range(3, 5):
        assert torch.equal(take(straight, number), take(continued, number))
    assert_same(state(straight), state(continued))


def test_compiled_at_two_resolutions() -> None:
    torch.compiler.reset()
    lines: list[str] = []
    ours, theirs = (
        train_step("fp32", forward=CompiledForward(DEVICE, lines.append)),
        train_step("fp32"),
    )
    for number, px in enumerate((64, 64, 96, 96, 64)):
        values, expected = take(ours, number, px), take(theirs, number, px)
        torch.testing.assert_close(values[:3], expected[:3], rtol=1e-2, atol=1e-3)
    assert [line.rpartition(" in ")[0] for line in lines] == [
        f"compiled training for {SIZE} images of {px} x {px} px" for px in (64, 96)
    ]


def test_activations_and_gradients_are_channels_last_through_the_blur() -> None:
    step = train_step()
    other: list[str] = []

    def watch(name: str) -> None:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.is_contiguous(memory_format=torch.channels_last):
                other.append(name)
            output.register_hook(back)

        def back(gradient: Tensor) -> None:
            if not gradient.is_contiguous(memory_format=torch.channels_last):
                other.append(f"gradient of {name}")

        step.network.get_submodule(name).register_forward_hook(hook)

    for name, module in step.network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            watch(name)
    take(step, 0)
    assert other == []


def test_memory_stays_flat_over_epochs() -> None:
    reserved = reserved_after_epochs(train_step(), steps=3)
    assert reserved[3:] == reserved[3:4] * 7


@pytest.mark.parametrize(("compile", "graphs"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_run_that_was_killed_ends_with_the_same_bits(
    dataset: Dataset, tmp_path: Path, compile: int, graphs: int
) -> None:
    undisturbed, broken = tmp_path / "undisturbed", tmp_path / "broken"
    more = (f"--training.compile={compile}", f"--training.cuda_graphs={graphs}")
    ended = ranks.run(ranks.arguments(dataset, undisturbed, *more), undisturbed, ranks=1)
    assert ended.codes == [FINISHED], ended.outputs
    arguments = ranks.arguments(dataset, broken, *more)
    killed = ranks.run(arguments, broken, ranks=1, hook=ranks.at_step(6, signal.SIGKILL))
    assert killed.codes == [-signal.SIGKILL], killed.outputs
    continued = ranks.run(arguments, broken, ranks=1)
    assert continued.codes == [FINISHED], continued.outputs
    ranks.assert_same_run(undisturbed, broken)


# --------------------------------------------------------------------------------------- CUDA graphs


def with_graphs(
    lines: list[str], precision: str = "bf16", forward: Forward | None = None
) -> TrainStep:
    return train_step(precision, forward=forward, graphs=Graphs(CudaCapture(DEVICE), lines.append))


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_replayed_passes_are_the_written_ones_to_the_bit(precision: str) -> None:
    """Accumulated gradients, resolutions that change, an evaluation and a checkpoint in between."""
    lines: list[str] = []
    written, replayed = train_step(precision), with_graphs(lines, precision)
    again = with_graphs([], precision)
    sides = [64] * 4 + [96] * 4 + [64] * 4
    for number, px in enumerate(sides):
        expected = take(written, number, px)
        assert torch.equal(take(replayed, number, px), expected), number
        if number >= 6:
            assert torch.equal(take(again, number, px), expected), "continued"
        if number == 5:
            again.load_state_dict(copy.deepcopy(replayed.state_dict()))
        with torch.inference_mode():
            found = [
                step.network.eval()(torch.ones(2, 3, 80, 80, device=DEVICE))
                for step in (written, replayed)
            ]
        assert torch.equal(*found)
    assert_same(state(written), state(replayed))
    assert_same(state(written), state(again))
    assert [line.rpartition(" in ")[0] for line in lines] == [
        f"recorded a CUDA graph for {SIZE} images of {px} x {px} px" for px in (64, 96, 64)
    ]


def test_compiled_passes_are_recorded() -> None:
    torch.compiler.reset()
    lines: list[str] = []
    ours = with_graphs(lines, "fp32", CompiledForward(DEVICE, lines.append))
    theirs = train_step("fp32")
    for number in range(WARM_UP + 3):
        values, expected = take(ours, number), take(theirs, number)
        torch.testing.assert_close(values[:3], expected[:3], rtol=1e-2, atol=1e-3)
    assert [line.partition(" ")[0] for line in lines] == ["compiled", "recorded"]


def test_a_replay_does_not_wait_for_the_device() -> None:
    step = with_graphs([])
    for number in range(WARM_UP):
        take(step, number)
    assert_no_wait(step)


def test_memory_stays_flat_where_graphs_are_recorded_anew() -> None:
    reserved = reserved_after_epochs(with_graphs([]), steps=4)
    assert max(reserved[4:]) <= max(reserved[:4])


def test_what_waits_for_the_device_runs_as_written() -> None:
    def waiting(logits: Tensor, targets: Tensor, step: Step) -> Tensor:
        loss = cross_entropy(logits, targets, step)
        return loss * (1.0 if loss.item() > 0 else 2.0)

    lines: list[str] = []
    ours = train_step(loss=waiting, graphs=Graphs(CudaCapture(DEVICE), lines.append))
    for number in range(WARM_UP + 2):
        assert take(ours, number)[:3].isfinite().all()
    (line,) = lines
    assert line.startswith("training.cuda_graphs: the passes of this network cannot be recorded (")


# ----------------------------------------------------------------------------------- NCCL with one rank


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[dist.ProcessGroup]:
    """A group of this process alone, with NCCL."""
    launched = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in {**launched, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}.items():
        monkeypatch.setenv(name, value)
    with distributed.world(60):
        group = dist.new_group([0])
        assert isinstance(group, dist.ProcessGroup)
        yield group


def test_sums_of_one_rank(one_rank: dist.ProcessGroup) -> None:
    values = torch.arange(5.0, device=DEVICE)
    distributed.all_reduce_sum(values)
    finish = distributed.begin_all_reduce_sum(values)
    finish()
    assert values.tolist() == [0, 1, 2, 3, 4]
    values += 256
    distributed.begin_all_reduce_sum_bf16(values)()
    assert values.tolist() == [256, 256, 258, 260, 260], "to eight bits"


@pytest.mark.usefixtures("one_rank", "deterministic")
def test_overlapped_sums_of_one_rank_change_nothing() -> None:
    at_once, overlapped = train_step(), train_step(overlapped=True)
    for number in range(3):
        assert torch.equal(take(at_once, number), take(overlapped, number))
    assert_same(state(at_once), state(overlapped))


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("reduce_bf16", [False, True])
def test_overlapped_sums_do_not_wait_for_the_device(reduce_bf16: bool) -> None:
    assert_no_wait(train_step(overlapped=True, reduce_bf16=reduce_bf16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_of_a_group_is_torchs(
    one_rank: dist.ProcessGroup, dtype: torch.dtype, affine: bool
) -> None:
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(8, affine=affine).to(DEVICE)
    if affine:
        nn.init.uniform_(theirs.weight)
    ours = GroupBatchNorm(copy.deepcopy(theirs), one_rank)
    x = (torch.randn(4, 8, 6, 6, device=DEVICE) + 3).to(dtype)
    x = x.to(memory_format=torch.channels_last)
    slope = torch.randn_like(x)
    found = []
    for norm in (ours, theirs):
        given = x.clone().requires_grad_()
        out = norm(given)
        (out * slope).sum().backward()
        found.append((out.detach(), given.grad, [p.grad for p in norm.parameters()]))
        assert out.is_contiguous(memory_format=torch.channels_last)
    rtol = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(*found, rtol=rtol, atol=rtol)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
