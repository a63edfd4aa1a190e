"""Everything about the training step that a GPU is needed for, in one command of at most nine minutes.

    python -m benchmarks.gpu --out FOLDER [--minutes 7]        (make bench-gpu OUT=FOLDER)

Measures this toolkit's step, as written, compiled, and as a CUDA graph, and those of ffcv-imagenet, torchvision's
reference and timm's, at several sizes and precisions; what the device can do at most (matrix products,
copies); the step fed by the loader; memory; and where the time goes, by class of kernel.

Rows are written to ``FOLDER/rows.jsonl`` as they come. The same command goes on where it was stopped,
or where its time was up; the rows that matter most come first. At the end, ``table.md`` and
``steps.png`` are made of all rows. On a CPU the same is done in miniature, to see that it works.

The steps of others are written anew after their sources, as their recipes run them:

- ffcv-imagenet (``train_imagenet.py`` at 606c584): its blur, channels-last, autocast, gradient scaler
  in either precision, SGD as torch chooses. Its images come normalised in half precision here, which
  costs it nothing; the other steps normalise.
- torchvision (``references/classification/train.py``): autocast, scaler, NCHW, no blur; it reads the
  loss and the accuracies in each step.
- timm (``train.py --amp --channels-last``): its ResNet-50, its SGD with Nesterov momentum, no blur.
"""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from benchmarks import train_step
from ffcv_r50 import distributed, models, optim
from ffcv_r50.config import command_line, settings
from ffcv_r50.errors import UserError, exit_with
from ffcv_r50.logs import jsonl
from ffcv_r50.models.dropout import draw_by_position
from ffcv_r50.registry import Options, Range
from ffcv_r50.training.forward import CompiledForward, Forward
from ffcv_r50.training.graphs import WARM_UP, Capture, CudaCapture, Graphs
from ffcv_r50.training.losses.cross_entropy import cross_entropy
from ffcv_r50.training.metrics import StepMetrics
from ffcv_r50.training.outcomes import Outcomes
from ffcv_r50.training.precision import DTYPES, Precision
from ffcv_r50.training.protocols import Batch, Step
from ffcv_r50.training.step import TrainStep
from ffcv_r50.training.transforms.normalize import Normalize

CLASSES = 1000
VALUES = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 1e-4, "label_smoothing": 0.1}
SAMPLE = 0.5
"""Seconds that a round of steps lasts at least, on a GPU."""


class Asked(Options):
    """What the command line asks for."""

    out: str
    """Folder for the rows and what is made of them."""
    minutes: Annotated[float, Range(above=0)] = 7.0
    """Nothing begins later than this; what has begun then may compile for a minute or two."""


class Cell(NamedTuple):
    """What several steps are compared at."""

    px: int
    batch: int
    precision: str


class Scale(NamedTuple):
    """How much is measured."""

    arch: str
    cells: list[Cell]
    rounds: int
    matrix: int
    """Side of the matrices that are multiplied."""
    copied: int
    """Bytes that are copied."""


GPU = Scale(
    "resnet50",
    # What the recipes run comes first.
    [Cell(px, 512, "bf16") for px in (160, 192, 224, 128)]
    + [Cell(160, 64, "bf16"), Cell(160, 512, "fp16"), Cell(160, 256, "bf16")]
    + [
        Cell(px, batch, precision)
        for precision in ("bf16", "fp16")
        for batch in (64, 256, 512)
        for px in (128, 160, 192, 224)
    ],
    rounds=3,
    matrix=8192,
    copied=1 << 30,
)
CPU = Scale(
    "resnet18", [Cell(32, 8, "fp32"), Cell(64, 8, "bf16")], rounds=2, matrix=512, copied=1 << 24
)

TakeStep = Callable[[], object]


class Benchmark:
    """One command's measurements.

    Args:
        folder: see :class:`Asked`.
        deadline: of ``time.monotonic``, after which nothing begins.
        device: that is measured.
        scale: how much.
    """

    def __init__(self, folder: Path, deadline: float, device: torch.device, scale: Scale) -> None:
        self.device = device
        self.scale = scale
        self._deadline = deadline
        self._rows = folder / "rows.jsonl"
        self.rows = read(self._rows)
        self.name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        others = {row["device"] for row in self.rows} - {self.name}
        if others:
            raise UserError(
                f"--out={folder}: has rows of another device ({', '.join(sorted(others))}); choose "
                "another folder"
            )

    def run(self) -> bool:
        """Measure what is missing; returns whether nothing is left."""
        cells = self.scale.cells
        return (
            self.ceilings()
            and self.steps(cells[:1])
            and self.profile()
            and self.fed()
            and self.steps(cells)
        )

    def wanted(self, **key: Any) -> bool:
        """Whether there is no such row yet."""
        return not any(key.items() <= row.items() for row in self.rows)

    def late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self._deadline

    def add(self, **row: Any) -> None:
        """Write a row down and show it."""
        row |= {"device": self.name, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
        self.rows.append(row)
        jsonl.append(self._rows, row)
        print(", ".join(f"{k} {v}" for k, v in row.items() if k not in ("device", "torch", "date")))

    # ------------------------------------------------------------------------------------ ceilings

    def ceilings(self) -> bool:
        """Matrix products in half precision, and copies, as fast as torch has them."""
        for precision in ("bf16", "fp16"):
            if self.wanted(kind="matmul", precision=precision):
                if self.late():
                    return False
                n = self.scale.matrix
                a = torch.randn(n, n, device=self.device, dtype=DTYPES[precision])
                seconds = self.seconds([lambda a=a: a @ a])[0]  # type: ignore[misc]
                tflops = round(2 * n**3 / seconds / 1e12, 3)
                self.add(kind="matmul", precision=precision, tflops=tflops)
        if self.wanted(kind="copy"):
            if self.late():
                return False
            source = torch.empty(self.scale.copied, dtype=torch.uint8, device=self.device)
            target = torch.empty_like(source)
            seconds = self.seconds([lambda: target.copy_(source)])[0]
            # Each byte is read and written.
            self.add(kind="copy", gb_per_s=round(2 * self.scale.copied / seconds / 1e9, 1))
        return True

    # --------------------------------------------------------------------------------------- steps

    def steps(self, cells: list[Cell]) -> bool:
        """The steps of each cell, in turns."""
        for cell in cells:
            missing = {
                kind: make
                for kind, make in STEPS.items()
                if self.wanted(kind=kind, **cell._asdict())
            }
            if missing and self.late():
                return False
            self._cell(cell, missing)
        return True

    def _cell(self, cell: Cell, kinds: dict[str, "Make"]) -> None:
        takes: dict[str, TakeStep] = {}
        found: dict[str, dict[str, Any]] = {}
        for kind, make in kinds.items():
            before = self.memory()
            began = time.perf_counter()
            try:
                takes[kind] = take = make(self.scale.arch, cell, self.device)
                for _ in range(WARM_UP + 1):
                    take()
                self.wait()
            except torch.OutOfMemoryError:
                takes.pop(kind, None)
                self.add(kind=kind, **cell._asdict(), error="out of memory")
                continue
            except ModuleNotFoundError as error:
                self.add(kind=kind, **cell._asdict(), error=f"{error.name} is not installed")
                continue
            first = round(time.perf_counter() - began, 1)
            found[kind] = {"start_seconds": first, "peak_gb": self.peak_gb(before)}
        for kind, seconds in zip(takes, self.seconds([*takes.values()]), strict=True):
            rate = round(cell.batch / seconds, 1)
            ms = round(1e3 * seconds, 3)
            self.add(kind=kind, **cell._asdict(), images_per_s=rate, ms=ms, **found[kind])

    def seconds(self, takes: list[TakeStep]) -> list[float]:
        """Of one call of each: medians over rounds, in which they take turns."""
        if not takes:
            return []
        repeats = []
        for take in takes:
            once = self._round(take, 1)
            aim = SAMPLE if self.device.type == "cuda" else 0.0
            repeats.append(max(2, min(50, round(aim / max(once, 1e-6)))))
        rounds = [
            [self._round(take, n) / n for take, n in zip(takes, repeats, strict=True)]
            for _ in range(self.scale.rounds)
        ]
        return [statistics.median(row) for row in zip(*rounds, strict=True)]

    def _round(self, take: TakeStep, repeats: int) -> float:
        """Seconds from an idle device to an idle device."""
        self.wait()
        began = time.perf_counter()
        for _ in range(repeats):
            take()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        """Until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def memory(self) -> int:
        """Bytes in use; what is used at most is counted from here."""
        if self.device.type != "cuda":
            return 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def peak_gb(self, before: int) -> float | None:
        """Most that was in use at once beyond ``before``; None on a CPU."""
        if self.device.type != "cuda":
            return None
        return round((torch.cuda.max_memory_allocated(self.device) - before) / 1e9, 2)

    # ------------------------------------------------------------------------- profile, and both together

    def profile(self) -> bool:
        """Where a step's time goes on the device, by class of kernel."""
        from torch.profiler import ProfilerActivity, profile

        cell = self.scale.cells[0]
        cuda = self.device.type == "cuda"
        for kind in ("ours", "ours compiled"):
            if not self.wanted(kind="profile", of=kind):
                continue
            if self.late():
                return False
            take = STEPS[kind](self.scale.arch, cell, self.device)
            for _ in range(3):
                take()
            self.wait()
            activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
            with profile(activities=[activity]) as profiled:
                take()
                self.wait()
            ms: dict[str, float] = {}
            for event in profiled.key_averages():
                spent = event.self_device_time_total if cuda else event.self_cpu_time_total
                ms[kernel_class(event.key)] = ms.get(kernel_class(event.key), 0.0) + spent / 1e3
            shown = {name: round(value, 3) for name, value in sorted(ms.items()) if value}
            self.add(kind="profile", of=kind, **cell._asdict(), ms=shown)
        return True

    def fed(self) -> bool:
        """The step on the loader's batches, against the step alone and the loader alone."""
        cell = self.scale.cells[0]
        if not self.wanted(kind="fed"):
            return True
        if self.late():
            return False
        words = {
            "config": [str(Path(__file__).resolve().parents[1] / "rcp" / "rn50_88ep.yaml")],
            "model.arch": [self.scale.arch],
            "training.batch_size": [str(cell.batch)],
            "training.norm_batch_size": [str(cell.batch)],
            "training.precision": [cell.precision],
        }
        config = settings.resolve(words, needs_data=False)
        steps = 20 if self.device.type == "cuda" else 2
        options = train_step.Measured(resolution=cell.px, steps=steps, rounds=1)
        with (
            distributed.world(config.dist.timeout_seconds) as world,
            train_step.dataset(config, world) as dataset,
        ):
            bench = train_step.Bench(config, options, dataset, world)
            rates = {kind: round(bench.kinds[kind](), 1) for kind in ("step", "loader", "both")}
        ratio = round(rates["both"] / rates["step"], 3)
        self.add(kind="fed", **cell._asdict(), images_per_s=rates, fed_to_alone=ratio)
        return True


def kernel_class(name: str) -> str:
    """What a kernel (or on CPUs an operator of torch) is for, by its name."""
    name = name.lower()
    for kind, parts in (
        ("batch-norm", ("batch_norm", "batchnorm", "bn_fw", "bn_bw")),
        ("convolution, matrix product", ("conv", "gemm", "cutlass", "xmma", "cudnn", "mm")),
        ("optimizer", ("multi_tensor", "foreach", "sgd", "adam")),
        ("copy", ("memcpy", "memset", "copy", "fill", "zero")),
        ("compiled", ("triton", "compiled")),
        ("pooling", ("pool",)),
    ):
        if any(part in name for part in parts):
            return kind
    return "elementwise, reduction, other"


# ------------------------------------------------------------------------------------------ the steps


Make = Callable[[str, Cell, torch.device], TakeStep]


def _bytes(cell: Cell, device: torch.device) -> tuple[Tensor, Tensor]:
    """uint8 images [n, 3, px, px], channels-last in memory, and labels."""
    shape = (cell.batch, cell.px, cell.px, 3)
    images = torch.randint(256, shape, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    return images, torch.randint(CLASSES, (cell.batch,), device=device)


def _ours(
    arch: str,
    cell: Cell,
    device: torch.device,
    forward: Forward,
    recorded: Graphs | None = None,
) -> TakeStep:
    network = models.build(arch, CLASSES, blurpool=True).to(device)
    network = network.to(memory_format=torch.channels_last)
    images, labels = _bytes(cell, device)
    batches = itertools.repeat(Batch(images, labels, labels, range(cell.batch)))
    metrics = StepMetrics(device, skips_overflows=True)
    step = TrainStep(
        network,
        optim.SGD().build(optim.parameter_groups(network, False), momentum=0.9),
        transforms=[],
        loss=cross_entropy,
        averages={},
        precision=Precision(cell.precision, device),
        draws=draw_by_position(network, 0, device),
        forward=forward,
        micro_batches=1,
        ranks=1,
        outcomes=Outcomes(cell.batch, device, each=True),
        graphs=recorded,
    )
    numbers = itertools.count()

    def take() -> None:
        at = Step(0, next(numbers), 0.0, VALUES)
        metrics.push(at, step(batches, at))

    return take


def ours(arch: str, cell: Cell, device: torch.device) -> TakeStep:
    """This toolkit's, as written."""
    return _ours(arch, cell, device, Forward(device))


def ours_compiled(arch: str, cell: Cell, device: torch.device) -> TakeStep:
    """The same through torch.compile; on a CPU without its code generator, which takes minutes there."""
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    return _ours(arch, cell, device, CompiledForward(device, print, backend))


class _AsWritten:
    """A capture for CPUs, which have no graphs."""

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        return work()

    def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return work


def ours_recorded(arch: str, cell: Cell, device: torch.device) -> TakeStep:
    """As written, its passes replayed as a CUDA graph; on a CPU they are not."""
    capture: Capture = CudaCapture(device) if device.type == "cuda" else _AsWritten()
    return _ours(arch, cell, device, Forward(device), Graphs(capture, print))


class _BlurThenConvolve(nn.Module):
    """ffcv-imagenet's: a depthwise convolution over all pixels, then the strided convolution."""

    kernel: Tensor

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        binomial = torch.tensor([1.0, 2.0, 1.0]) / 4
        shape = (convolution.in_channels, 1, 3, 3)
        self.register_buffer("kernel", torch.outer(binomial, binomial).expand(shape).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        blurred = F.conv2d(x, self.kernel, padding=1, groups=self.convolution.in_channels)
        convolved: Tensor = self.convolution(blurred)
        return convolved


def ffcv_imagenet(arch: str, cell: Cell, device: torch.device) -> TakeStep:
    """See the top of this page."""
    network = torchvision.models.get_model(arch, weights=None)
    strided = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16
    ]
    for parent, name, child in strided:
        setattr(parent, name, _BlurThenConvolve(child))
    network = network.to(device, memory_format=torch.channels_last)
    named = [*network.named_parameters()]
    groups = [
        {"params": [p for name, p in named if "bn" in name], "weight_decay": 0.0},
        {"params": [p for name, p in named if "bn" not in name], "weight_decay": 1e-4},
    ]
    optimizer = torch.optim.SGD(groups, lr=1e-4, momentum=0.9)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    images, labels = _bytes(cell, device)
    dtype = DTYPES[cell.precision]
    images = Normalize(device).images(images).to(dtype)
    return _amp_step(network, optimizer, criterion, lambda: images, labels, cell, device)


def torchvision_reference(arch: str, cell: Cell, device: torch.device) -> TakeStep:
    """See the top of this page."""
    network = torchvision.models.get_model(arch, weights=None).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
    images, labels = _bytes(cell, device)
    floats = Normalize(device).images(images).contiguous()

    def read(loss: Tensor, logits: Tensor) -> None:
        loss.item()
        hits = logits.topk(5, 1).indices == labels[:, None]
        hits[:, :1].sum().item()
        hits.sum().item()

    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    return _amp_step(network, optimizer, criterion, lambda: floats, labels, cell, device, read)


def timm_reference(arch: str, cell: Cell, device: torch.device) -> TakeStep:
    """See the top of this page."""
    import timm
    from timm.loss.cross_entropy import LabelSmoothingCrossEntropy
    from timm.optim._optim_factory import create_optimizer_v2

    network = timm.create_model(arch).to(device).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(network, "sgd", lr=1e-4, weight_decay=1e-4, momentum=0.9)
    images, labels = _bytes(cell, device)
    normalize = Normalize(device)
    criterion = LabelSmoothingCrossEntropy(0.1)
    return _amp_step(
        network, optimizer, criterion, lambda: normalize.images(images), labels, cell, device
    )


def _amp_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: nn.Module,
    images: Callable[[], Tensor],
    labels: Tensor,
    cell: Cell,
    device: torch.device,
    read: Callable[[Tensor, Tensor], None] = lambda loss, logits: None,
) -> TakeStep:
    """Autocast, scale, step: how all of them train in mixed precision."""
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    precision = Precision(cell.precision, device)
    network.train()

    def take() -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision.autocast():
            logits = network(images())
            loss = criterion(logits, labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        read(loss, logits)

    return take


STEPS: dict[str, Make] = {
    "ours": ours,
    "ours compiled": ours_compiled,
    "ours, CUDA graph": ours_recorded,
    "ffcv-imagenet": ffcv_imagenet,
    "torchvision": torchvision_reference,
    "timm": timm_reference,
}


# ---------------------------------------------------------------------------------------- what is made


def read(path: Path) -> list[dict[str, Any]]:
    """The rows that an earlier start left; what it was writing when it was killed is no row."""
    rows = jsonl.read(path)
    if path.exists():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line a cell, images per second of each step, and what else was measured."""
    device = rows[0]["device"] if rows else "nothing measured"
    lines = [
        f"# Training steps on {device}",
        "",
        "Images per second; in brackets, times ffcv-imagenet's.",
    ]
    lines += ["", "| px | batch | precision | " + " | ".join(STEPS) + " |"]
    lines += ["|--:|--:|---|" + "--:|" * len(STEPS)]
    by_cell: dict[Cell, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] in STEPS:
            cell = Cell(row["px"], row["batch"], row["precision"])
            by_cell.setdefault(cell, {})[row["kind"]] = row
    for cell, found in by_cell.items():
        base = found.get("ffcv-imagenet", {}).get("images_per_s")
        shown = [_shown(found.get(kind, {}), base) for kind in STEPS]
        lines.append(f"| {cell.px} | {cell.batch} | {cell.precision} | " + " | ".join(shown) + " |")
    lines.append("")
    for row in rows:
        if row["kind"] not in STEPS:
            rest = {k: v for k, v in row.items() if k not in ("device", "torch", "date")}
            lines.append("- " + ", ".join(f"{key} {value}" for key, value in rest.items()))
    dates = sorted({f"torch {row['torch']}, {row['date']}" for row in rows})
    return "\n".join([*lines, "", f"`python -m benchmarks.gpu`, {'; '.join(dates)}.", ""])


def _shown(row: dict[str, Any], base: float | None) -> str:
    if "images_per_s" not in row:
        return str(row.get("error", ""))
    rate = row["images_per_s"]
    return f"{rate:,.0f}" + (f" ({rate / base:.2f}x)" if base else "")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of images per second, a group a cell, at the largest batch of each size and precision."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [row for row in rows if row["kind"] in STEPS and "images_per_s" in row]
    largest: dict[tuple[str, int], int] = {}
    for row in measured:
        group = row["precision"], row["px"]
        largest[group] = max(largest.get(group, 0), row["batch"])
    groups = sorted(largest)
    figure, axes = pyplot.subplots(figsize=(1.5 + 2 * len(groups), 4))
    for place, kind in enumerate(STEPS):
        rates = {
            (row["precision"], row["px"]): row["images_per_s"]
            for row in measured
            if row["kind"] == kind and row["batch"] == largest[row["precision"], row["px"]]
        }
        xs = [i + place * 0.16 for i, group in enumerate(groups) if group in rates]
        axes.bar(xs, [rates[group] for group in groups if group in rates], 0.15, label=kind)
    axes.set_xticks(
        [i + 0.32 for i in range(len(groups))],
        [f"{px} px, {largest[precision, px]}, {precision}" for precision, px in groups],
    )
    axes.set_ylabel("images/s")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Measure what is missing, then make table and chart of all rows."""
    asked = command_line.read(Asked, sys.argv[1:], __doc__ or "")
    deadline = time.monotonic() + 60 * asked.minutes
    folder = Path(asked.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={folder}: cannot be made: {error.strerror}") from error
    cuda = torch.cuda.is_available()
    device, scale = (torch.device("cuda", 0), GPU) if cuda else (torch.device("cpu"), CPU)
    if cuda:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    benchmark = Benchmark(folder, deadline, device, scale)
    done = benchmark.run()
    (folder / "table.md").write_text(table(benchmark.rows))
    try:
        draw(benchmark.rows, folder / "steps.png")
    except ModuleNotFoundError as error:
        print(f"no chart: {error.name} is not installed (pip install 'ffcv_r50[plots]')")
    left = "" if done else "; the time was up, the same command goes on"
    print(f"{len(benchmark.rows)} rows in {folder}{left}")


if __name__ == "__main__":
    exit_with(main)
