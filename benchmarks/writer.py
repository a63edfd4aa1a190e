"""How many images a second our writer and FFCV's own write, of the same images on the same cores.

    python -m benchmarks.writer --images DIR [--workers 2] [--rounds 5] [--repeat 10]

``DIR`` is a tree ``DIR/<class>/<image>``. Its images are written as JPEG (longest side 500, quality
90) by FFCV's DatasetWriter, by ours, and by ours with ``write_mode=keep``, taking turns at every
round, each in a program of its own. Starting is not counted: a program writes the images once, then
``repeat`` times, and the difference is what counts. Rates are medians over the rounds, and "times
FFCV" is the median of the ratios within a round, with the least and the most. CPU is what all
processes took together, which other work on the cores disturbs less than it does the time. The last
column is the size of an image in the file.
"""

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ffcv_r50.config import command_line
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import UserError, exit_with
from ffcv_r50.registry import Options, Range
from writers import writing
from writers.config import Writing

LONGEST_SIDE, QUALITY = 500, 90
WRITERS = {"ffcv": "FFCV", "jpg": "ours, jpg", "keep": "ours, keep"}
TIME_LIMIT = 600.0
"""Seconds for one program."""

Count = Annotated[int, Range(at_least=1)]


class Measured(Options):
    """What is measured."""

    images: str
    """A tree `DIR/<class>/<image>`."""
    workers: Count = len(os.sched_getaffinity(0))
    """Processes."""
    rounds: Count = 5
    """Measurements of each."""
    repeat: Annotated[int, Range(at_least=2)] = 10
    """Times that the images are in the long file."""
    work_folder: str | None = None
    """Where the files are written, and removed afterwards; null stands for the system's."""


class Cost(NamedTuple):
    """Of an image."""

    seconds: float
    cpu: float
    """Seconds of all processes."""
    size: float
    """Bytes that are stored."""


def main() -> None:
    """Write the files, report."""
    options = command_line.read(Measured, sys.argv[1:], usage=__doc__ or "")
    sources = sorted(path for path in Path(options.images).glob("*/*") if path.is_file())
    if not sources:
        raise UserError(f"{options.images}: no images found as <class>/<image>; check --images")
    costs: dict[str, list[Cost]] = {name: [] for name in WRITERS}
    count = (options.repeat - 1) * len(sources)
    with tempfile.TemporaryDirectory(dir=options.work_folder) as folder:
        trees = [_tree(Path(folder, f"images{n}"), sources, n) for n in (1, options.repeat)]
        for _ in track(range(options.rounds), "writing"):
            for name in WRITERS:
                short, long = _written(name, trees, options.workers)
                costs[name].append(
                    Cost(*((b - a) / count for a, b in zip(short, long, strict=True)))
                )
    print(f"{count:,} images, {options.rounds} rounds, {options.workers} workers")
    Console(width=100).print(_table(costs))


def _table(costs: dict[str, list[Cost]]) -> Table:
    columns = ("writer", "images/s", "times FFCV", "CPU ms an image", "times FFCV", "kB an image")
    table = Table(*columns)
    for name, label in WRITERS.items():
        median = [statistics.median(values) for values in zip(*costs[name], strict=True)]
        ratios = [
            [getattr(stock, what) / getattr(ours, what) for stock, ours in zip(costs["ffcv"], costs[name], strict=True)]
            for what in ("seconds", "cpu")
        ]  # fmt: skip
        speed, cpu = (f"{statistics.median(r):.2f} ({min(r):.2f} - {max(r):.2f})" for r in ratios)
        table.add_row(
            label,
            f"{1 / median[0]:,.0f}",
            speed,
            f"{1e3 * median[1]:.2f}",
            cpu,
            f"{median[2] / 1e3:.1f}",
        )
    return table


def _tree(folder: Path, sources: list[Path], times: int) -> Path:
    """A tree of links that repeats the images."""
    for source in sources:
        (folder / source.parent.name).mkdir(parents=True, exist_ok=True)
        for i in range(times):
            (folder / source.parent.name / f"{i}_{source.name}").symlink_to(source.resolve())
    return folder


def _written(name: str, trees: list[Path], workers: int) -> list[Cost]:
    """What writing each tree cost in all."""
    call = f"measure({name!r}, {[*map(str, trees)]}, {workers})"
    command = [sys.executable, "-c", f"from benchmarks import writer; writer.{call}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{WRITERS[name]}: took more than {TIME_LIMIT:g} s; pass a lower --repeat"
        ) from None
    if done.returncode:
        raise UserError(f"writing failed: {done.stderr.strip()[-500:]}")
    return [Cost(*cost) for cost in json.loads(done.stdout.splitlines()[-1])]


def measure(name: str, trees: list[str], workers: int) -> None:
    """In a program of its own: write each tree, print the costs as JSON in the last line."""
    write = stock(workers) if name == "ffcv" else ours(name, workers)
    costs = []
    for tree in trees:
        path = Path(tree).with_suffix(".beton")
        start, cpu = time.monotonic(), sum(os.times()[:4])
        write(tree, str(path))
        seconds = time.monotonic() - start
        for child in multiprocessing.active_children():  # FFCV's writer does not wait for its own
            child.join()
        cpu = sum(os.times()[:4]) - cpu
        costs.append(Cost(seconds, cpu, int(Beton(path).sizes.sum())))
        path.unlink()
    print(json.dumps(costs))


Write = Callable[[str, str], None]
"""Writes a tree of images to a file."""


def ours(mode: str, workers: int) -> Write:
    """Our writer."""

    def write(images: str, path: str) -> None:
        settings = {
            "dataset": "imagenet",
            "data_dir": images,
            "write_path": path,
            "write_mode": mode,
            "max_resolution": LONGEST_SIDE,
            "jpeg_quality": QUALITY,
            "num_workers": workers,
        }
        writing.write(Writing.model_validate(settings))

    return write


def stock(workers: int) -> Write:
    """FFCV's, from torchvision's ImageFolder."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from torchvision.datasets import ImageFolder

    def write(images: str, path: str) -> None:
        image = RGBImageField(write_mode="jpg", max_resolution=LONGEST_SIDE, jpeg_quality=QUALITY)
        writer = DatasetWriter(path, {"image": image, "label": IntField()}, num_workers=workers)
        writer.from_indexed_dataset(ImageFolder(images))

    return write


if __name__ == "__main__":
    exit_with(main)
