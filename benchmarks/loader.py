"""How many images a second each loader makes of the same images on the same cores.

    python benchmarks/loader.py --images DIR --resolution 128,160,192,224 --workers 2

``DIR`` is a tree ``DIR/<class>/<image>``. Its images, repeated until an epoch is long enough, are
written to two ``.beton`` files of JPEGs (longest side 500, quality 90): by stock FFCV, and by our
writer with restart tiles. Then training batches (random resized crop, flip) are made by

- ``stock_ffcv``: FFCV's Loader on FFCV's file,
- ``ours_stock_file``: our loader on FFCV's file,
- ``ours_tiled_file``: our loader on our file,
- ``torchvision``: a DataLoader over the ImageFolder of the source images,
- ``dali``: NVIDIA DALI on the CPU over the same folder, where it is installed,

each in its own process, bound to as many cores as it has workers, one at a time, taking turns at
every round. Memory is what is private to the process and its children: the mapped file is not
counted. The first batch's time runs from making the loader, imports done, in a second process (the
first one fills caches).

    python benchmarks/loader.py --images DIR --resolution 160 --workers 2 --augment randaugment

asks instead what an augmentation costs, with its defaults: it is measured in our loader and in
torchvision's, beside our loader without it. No file is written by stock FFCV then.

    python benchmarks/loader.py --images DIR --resolution 160 --workers 2 \\
        --loaders stock_ffcv,stock_ffcv_tiled_file,ffcv_ours_stock_file,ffcv_ours_tiled_file

compares FFCV's decoder with ours (:mod:`ffcv_r50.ffcv`) inside FFCV's own Loader.
"""

import importlib
import importlib.util
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from ffcv_r50.config import command_line
from ffcv_r50.errors import UserError, exit_with
from ffcv_r50.registry import Options, Range

LOADERS = {
    "stock_ffcv": "FFCV",
    "ours_stock_file": "ours, FFCV's file",
    "ours_tiled_file": "ours, tiled file",
    "torchvision": "torchvision",
    "dali": "DALI",
    "stock_ffcv_tiled_file": "FFCV, tiled file",
    "ffcv_ours_stock_file": "FFCV with our decoder, FFCV's file",
    "ffcv_ours_tiled_file": "FFCV with our decoder, tiled file",
    "torchvision_augmented": "torchvision, augmented",
    "ours_augmented": "ours, augmented",
}
"""What the chart calls them."""
PLAIN = [name for name in LOADERS if not name.endswith("_augmented")]
AUGMENTATIONS: dict[str, Callable[[Any], Any]] = {
    "augmix": lambda transforms: transforms.AugMix(),
    "auto_augment": lambda transforms: transforms.AutoAugment(),
    "color_jitter": lambda transforms: transforms.ColorJitter(0.4, 0.4, 0.4),
    "grayscale": lambda transforms: transforms.RandomGrayscale(),
    "randaugment": lambda transforms: transforms.RandAugment(),
    "trivial_augment": lambda transforms: transforms.TrivialAugmentWide(),
}
"""What torchvision's module makes that ours does with its defaults, by our name."""
LONGEST_SIDE, QUALITY = 500, 90

Epoch = Callable[[int], Iterator[int]]
"""From a resolution to the sizes of the batches of an epoch, as they are made."""


Count = Annotated[int, Range(at_least=1)]


class Measured(Options):
    """What is measured."""

    images: str
    """A tree `DIR/<class>/<image>`."""
    resolution: str = "128,160,192,224"
    """Sides in pixels, separated by commas."""
    workers: Count = os.cpu_count() or 1
    """Threads, and cores."""
    rounds: Count = 3
    """Measurements of each loader."""
    images_per_round: Count = 8000
    """At least so many."""
    batch_size: Count = 512
    """Images of a batch."""
    json_file: Annotated[str | None, Field(alias="json")] = None
    """Write the rows of the table here."""
    chart: str | None = None
    """Draw a bar chart here (needs matplotlib)."""
    loaders: str | None = None
    """Names separated by commas; null stands for the first five above, as far as they are installed."""
    augment: str | None = None
    """A transform of single images, by the name that recipes have for it."""
    work_folder: str | None = None
    """Where the files are written, and removed afterwards; null stands for the system's."""


class Task(NamedTuple):
    """What a loader is to do."""

    folder: Path
    """Holds the tree ``images`` and the files ``stock.beton`` and ``tiled.beton``."""
    batch_size: int
    workers: int
    augment: str = ""
    """By our name, for those that augment."""


def main() -> None:
    """Write the files, measure, report."""
    options = command_line.read(Measured, sys.argv[1:], usage=__doc__ or "")
    try:
        resolutions = [int(text) for text in options.resolution.split(",")]
    except ValueError:
        raise UserError(
            f"--resolution={options.resolution}: write sides in pixels, as 128,224"
        ) from None
    if options.loaders is not None and options.augment is not None:
        raise UserError(
            "--loaders and --augment: give one of them; --augment has loaders of its own"
        )
    if options.loaders is not None:
        names = options.loaders.split(",")
        if unknown := [name for name in names if name not in PLAIN]:
            choices = " or ".join(PLAIN)
            raise UserError(f"--loaders={options.loaders}: no '{unknown[0]}'; choose {choices}")
    elif options.augment is None:
        names = [name for name in PLAIN[:5] if name != "dali" or _has_dali()]
    elif options.augment in AUGMENTATIONS:
        names = ["torchvision_augmented", "ours_tiled_file", "ours_augmented"]
    else:
        choices = " or ".join(AUGMENTATIONS)
        raise UserError(f"--augment={options.augment}: choose {choices}")
    with tempfile.TemporaryDirectory(dir=options.work_folder) as folder:
        task = Task(Path(folder), options.batch_size, options.workers, options.augment or "")
        count = _write(Path(options.images), task, options.images_per_round)
        print(f"{count} images a round, {options.rounds} rounds, {options.workers} workers")
        rows = _measure(names, task, resolutions, options.rounds)
    print(_table(rows))
    if options.json_file:
        Path(options.json_file).write_text(json.dumps(rows, indent=1) + "\n")
    if options.chart:
        _chart(rows, Path(options.chart))


def _has_dali() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False


# --- the files


def _write(images: Path, task: Task, at_least: int) -> int:
    """Write the files, and a tree of links that repeats the images; return how many there are."""
    sources = sorted(path for path in images.glob("*/*") if path.is_file())
    if not sources:
        raise UserError(f"{images}: no images found as <class>/<image>; check --images")
    at_least = max(at_least, task.batch_size)
    repeats = -(-at_least // len(sources))
    for source in sources:
        kind = task.folder / "images" / source.parent.name
        kind.mkdir(parents=True, exist_ok=True)
        for i in range(repeats):
            (kind / f"{source.stem}-{i}{source.suffix}").symlink_to(source.resolve())
    writer = Path(__file__).parent.parent / "writers" / "write_imagenet.py"
    commands: list[list[str | Path]] = [
        [sys.executable, writer, f"--cfg.data_dir={task.folder / 'images'}",
         f"--cfg.write_path={task.folder / 'tiled.beton'}", "--cfg.write_mode=jpg",
         f"--cfg.max_resolution={LONGEST_SIDE}", f"--cfg.jpeg_quality={QUALITY}"],
        [sys.executable, __file__, "--write-stock", task.folder],
    ]  # fmt: skip
    for command in commands[:1] if task.augment else commands:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise UserError(f"writing failed: {done.stdout.strip()}")
    return repeats * len(sources)


def _write_stock(folder: Path) -> None:
    """Write ``stock.beton`` as FFCV does. A process of its own: FFCV forks."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from torchvision.datasets import ImageFolder

    image = RGBImageField(write_mode="jpg", max_resolution=LONGEST_SIDE, jpeg_quality=QUALITY)
    writer = DatasetWriter(
        str(folder / "stock.beton"),
        {"image": image, "label": IntField()},
        num_workers=os.cpu_count() or 1,
    )
    writer.from_indexed_dataset(ImageFolder(str(folder / "images")))


# --- the loaders


def _ffcv(task: Task, name: str, ours: bool) -> Epoch:
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor

    if ours:
        from ffcv_r50.ffcv import RandomResizedCropRGBImageDecoder
    decoder = RandomResizedCropRGBImageDecoder((256, 256))
    loader = Loader(
        str(task.folder / name),
        batch_size=task.batch_size,
        num_workers=task.workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={
            "image": [decoder, RandomHorizontalFlip(), ToTensor()],
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        },
    )

    def epoch(resolution: int) -> Iterator[int]:
        decoder.output_size = (resolution, resolution)
        for images, _ in loader:
            yield len(images)

    return epoch


def _ours(task: Task, name: str, augment: str = "") -> Epoch:
    from ffcv_r50.data.beton import Beton
    from ffcv_r50.data.loader import TrainLoader
    from ffcv_r50.training.transforms import TRANSFORMS, ImageOptions

    transforms = []
    if augment:
        options = TRANSFORMS[augment]()
        assert isinstance(options, ImageOptions)
        transforms.append(options.build())
    loader = TrainLoader(
        Beton(task.folder / name),
        seed=0,
        batch_size=task.batch_size,
        micro_batch_size=task.batch_size,
        num_workers=task.workers,
        transforms=transforms,
    )

    def epoch(resolution: int) -> Iterator[int]:
        with loader.epoch(0, resolution) as batches:
            for batch in batches:
                yield len(batch.images)

    return epoch


def _torchvision(task: Task, augment: str = "") -> Epoch:
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    augmentations = [AUGMENTATIONS[augment](transforms)] if augment else []

    def epoch(resolution: int) -> Iterator[int]:
        transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(resolution),
                transforms.RandomHorizontalFlip(),
                *augmentations,
                transforms.PILToTensor(),
            ]
        )
        loader: DataLoader[Any] = DataLoader(
            datasets.ImageFolder(str(task.folder / "images"), transform),
            batch_size=task.batch_size,
            shuffle=True,
            num_workers=task.workers,
            drop_last=True,
            multiprocessing_context="fork",
        )
        for images, _ in loader:
            yield len(images)

    return epoch


def _dali(task: Task) -> Epoch:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=task.batch_size, num_threads=task.workers, device_id=None)
    def pipeline(resolution: int) -> Any:
        files, labels = fn.readers.file(
            file_root=str(task.folder / "images"), random_shuffle=True, name="files"
        )
        images = fn.decoders.image_random_crop(
            files, device="cpu", random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        images = fn.resize(
            images, resize_x=resolution, resize_y=resolution, interp_type=types.INTERP_TRIANGULAR
        )
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    def epoch(resolution: int) -> Iterator[int]:
        pipe = pipeline(resolution)
        pipe.build()
        for _ in range(pipe.epoch_size("files") // task.batch_size):
            images, _ = pipe.run()
            yield len(images)

    return epoch


MAKE: dict[str, Callable[[Task], Epoch]] = {
    "stock_ffcv": lambda task: _ffcv(task, "stock.beton", ours=False),
    "ours_stock_file": lambda task: _ours(task, "stock.beton"),
    "ours_tiled_file": lambda task: _ours(task, "tiled.beton"),
    "torchvision": _torchvision,
    "dali": _dali,
    "stock_ffcv_tiled_file": lambda task: _ffcv(task, "tiled.beton", ours=False),
    "ffcv_ours_stock_file": lambda task: _ffcv(task, "stock.beton", ours=True),
    "ffcv_ours_tiled_file": lambda task: _ffcv(task, "tiled.beton", ours=True),
    "torchvision_augmented": lambda task: _torchvision(task, task.augment),
    "ours_augmented": lambda task: _ours(task, "tiled.beton", task.augment),
}


# --- the measurement


def _serve(name: str, task: Task, resolution: int, orders: Connection) -> None:
    """A loader's process: report the first batch's time, then run an epoch for each order."""
    _import(name)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task.workers])
    start = time.perf_counter()
    epoch = MAKE[name](task)
    batches = epoch(resolution)
    next(batches)
    orders.send(time.perf_counter() - start)
    for _ in batches:  # the first epoch compiles and allocates
        pass
    orders.send("warm")
    while (resolution := orders.recv()) is not None:
        start = time.perf_counter()
        images, memory = 0, 0.0
        for n in epoch(resolution):
            if images == 0:
                memory = _memory()
            images += n
        orders.send((images / (time.perf_counter() - start), max(memory, _memory())))


def _import(name: str) -> None:
    """Import what a loader needs before the clock starts."""
    needed = {
        "stock": ["ffcv.loader"],
        "ffcv": ["ffcv.loader", "ffcv_r50.ffcv"],
        "ours": ["ffcv_r50.data.loader", "ffcv_r50.training.transforms"],
        "torchvision": ["torchvision.datasets"],
        "dali": ["nvidia.dali"],
    }
    for module in needed[name.split("_")[0]]:
        importlib.import_module(module)


def _memory() -> float:
    """Private and shared-anonymous memory of this process and its children, in MB."""
    me = os.getpid()
    children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
    total = 0
    for process in [str(me), *children]:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += int(line.split()[1])
    return total / 1024


class _Process:
    """A loader in a process of its own."""

    def __init__(self, name: str, task: Task, resolution: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._orders, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, task, resolution, theirs))
        self._process.start()
        theirs.close()
        self.first_batch: float = self._answer(name)
        self._name = name

    def warm(self) -> None:
        """Wait for the end of the first epoch."""
        self._answer(self._name)

    def run(self, resolution: int) -> tuple[float, float]:
        """Images per second of an epoch, and memory in MB."""
        self._orders.send(resolution)
        answer: tuple[float, float] = self._answer(self._name)
        return answer

    def _answer(self, name: str) -> Any:
        try:
            return self._orders.recv()
        except EOFError:
            raise UserError(f"{name}: its process ended, see its message above") from None

    def close(self, kill: bool = False) -> None:
        """End the process."""
        if kill:
            self._process.kill()
        else:
            self._orders.send(None)
        self._process.join()


def _measure(
    names: list[str], task: Task, resolutions: list[int], rounds: int
) -> list[dict[str, Any]]:
    processes = {}
    for name in names:
        # A first process fills caches on disk and in memory; torchvision's workers die with it.
        first = _Process(name, task, resolutions[0])
        first.warm()
        first.close()
        processes[name] = _Process(name, task, resolutions[0])
        processes[name].warm()
    rows = []
    for resolution in resolutions:
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                seen[name].append(processes[name].run(resolution))
        for name in names:
            speeds = [speed for speed, _ in seen[name]]
            rows.append(
                {
                    "loader": name,
                    "resolution": resolution,
                    "workers": task.workers,
                    "images_per_second": round(statistics.median(speeds), 1),
                    "images_per_second_min": round(min(speeds), 1),
                    "images_per_second_max": round(max(speeds), 1),
                    "rss_mb": round(max(memory for _, memory in seen[name])),
                    "first_batch_seconds": round(processes[name].first_batch, 2),
                }
            )
    for process in processes.values():
        process.close()
    return rows


# --- the report


def _table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    base = "stock_ffcv" if any(r["loader"] == "stock_ffcv" for r in rows) else rows[0]["loader"]
    shown = "stock" if base == "stock_ffcv" else LOADERS[base]
    lines = [
        f"| px | loader | images/s (median) | min - max | per core | x {shown} | memory, MB "
        "| first batch, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    speeds = {r["resolution"]: r["images_per_second"] for r in rows if r["loader"] == base}
    for r in rows:
        speed = r["images_per_second"]
        lines.append(
            f"| {r['resolution']} | {r['loader']} | {speed:,.0f} "
            f"| {r['images_per_second_min']:,.0f} - {r['images_per_second_max']:,.0f} "
            f"| {speed / r['workers']:,.0f} | {speed / speeds[r['resolution']]:.2f} "
            f"| {r['rss_mb']:,} | {r['first_batch_seconds']:.2f} |"
        )
    return "\n".join(lines)


def _chart(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of images per second, grouped by resolution; whiskers from the slowest to the fastest round."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    resolutions = sorted({row["resolution"] for row in rows})
    names = [name for name in LOADERS if any(row["loader"] == name for row in rows)]
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        mine = [row for row in rows if row["loader"] == name]
        x = [
            resolutions.index(row["resolution"]) + (i - len(names) / 2 + 0.5) * width
            for row in mine
        ]
        speed = [row["images_per_second"] for row in mine]
        spread = [
            [row["images_per_second"] - row["images_per_second_min"] for row in mine],
            [row["images_per_second_max"] - row["images_per_second"] for row in mine],
        ]
        axes.bar(x, speed, width, yerr=spread, label=LOADERS[name], capsize=2)
    axes.set_xticks(range(len(resolutions)), [str(side) for side in resolutions])
    axes.set_xlabel("side of the training images (pixels)")
    axes.set_ylabel(f"images per second ({rows[0]['workers']} cores)")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(names), frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write-stock"]:
        _write_stock(Path(sys.argv[2]))
    else:
        exit_with(main)
