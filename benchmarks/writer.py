"""How many images a second our writer and FFCV's own write, of the same images on the same cores.

    python -m benchmarks.writer --images DIR [--workers 2] [--rounds 5]

``DIR`` is a tree ``DIR/<class>/<image>``. Its images are written as JPEG (longest side 500, quality
90) by FFCV's DatasetWriter, by ours, and by ours with ``write_mode=keep``, taking turns at every
round, each in a program of its own. Starting is not counted: the time is that of many images less
that of few, in medians over the rounds. The last column is the size of an image in the file.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ffcv_r50.config import command_line
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import UserError, exit_with
from ffcv_r50.registry import Options, Range

LONGEST_SIDE, QUALITY = 500, 90
FEW, MANY = 1, 4
"""Repetitions of the images, in a short and in a long file."""
WRITERS = {"ffcv": "FFCV", "jpg": "ours, jpg", "keep": "ours, keep"}
TIME_LIMIT = 1800.0
"""Seconds for one file."""

Count = Annotated[int, Range(at_least=1)]


class Measured(Options):
    """What is measured."""

    images: str
    """A tree `DIR/<class>/<image>`."""
    workers: Count = os.cpu_count() or 1
    """Processes."""
    rounds: Count = 5
    """Measurements of each."""
    work_folder: str | None = None
    """Where the files are written, and removed afterwards; null stands for the system's."""


def main() -> None:
    """Write the files, report."""
    options = command_line.read(Measured, sys.argv[1:], usage=__doc__ or "")
    sources = sorted(path for path in Path(options.images).glob("*/*") if path.is_file())
    if not sources:
        raise UserError(f"{options.images}: no images found as <class>/<image>; check --images")
    seconds: dict[str, list[float]] = {name: [] for name in WRITERS}
    sizes = {}
    with tempfile.TemporaryDirectory(dir=options.work_folder) as folder:
        trees = {times: _tree(Path(folder, f"images{times}"), sources, times) for times in (FEW, MANY)}  # fmt: skip
        for _ in track(range(options.rounds), "writing"):
            for name in WRITERS:
                short, long = (_written(name, trees[n], options.workers) for n in (FEW, MANY))
                seconds[name].append(long[0] - short[0])
                sizes[name] = (long[1] - short[1]) / (MANY - FEW) / len(sources)
    count = (MANY - FEW) * len(sources)
    table = Table("writer", "images/s", "least", "most", "times FFCV", "kB an image")
    for name, label in WRITERS.items():
        rates = [count / s for s in seconds[name]]
        rate = statistics.median(rates)
        table.add_row(
            label,
            *(f"{r:,.0f}" for r in (rate, min(rates), max(rates))),
            f"{rate / statistics.median(count / s for s in seconds['ffcv']):.2f}",
            f"{sizes[name] / 1e3:.1f}",
        )
    print(f"{count:,} images, {options.rounds} rounds, {options.workers} workers")
    Console(width=100).print(table)


def _tree(folder: Path, sources: list[Path], times: int) -> Path:
    """A tree of links that repeats the images."""
    for source in sources:
        (folder / source.parent.name).mkdir(parents=True, exist_ok=True)
        for i in range(times):
            (folder / source.parent.name / f"{i}_{source.name}").symlink_to(source.resolve())
    return folder


def _written(name: str, images: Path, workers: int) -> tuple[float, int]:
    """Seconds that writing the images took, and bytes of what is stored of them."""
    path = images.with_suffix(".beton")
    if name == "ffcv":
        command = ["-c", f"from benchmarks.writer import write_stock as w; w({str(images)!r}, {str(path)!r}, {workers})"]  # fmt: skip
    else:
        command = [
            "-m", "writers.write_imagenet", f"--cfg.data_dir={images}", f"--cfg.write_path={path}",
            f"--cfg.write_mode={name}", f"--cfg.max_resolution={LONGEST_SIDE}",
            f"--cfg.jpeg_quality={QUALITY}", f"--cfg.num_workers={workers}",
        ]  # fmt: skip
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIME_LIMIT,
    )
    seconds = time.monotonic() - start
    if done.returncode:
        raise UserError(f"writing failed: {done.stdout.strip()[-500:]}")
    size = int(Beton(path).sizes.sum())
    path.unlink()
    return seconds, size


def write_stock(images: str, path: str, workers: int) -> None:
    """Write a file as FFCV does, from torchvision's ImageFolder."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from torchvision.datasets import ImageFolder

    image = RGBImageField(write_mode="jpg", max_resolution=LONGEST_SIDE, jpeg_quality=QUALITY)
    writer = DatasetWriter(path, {"image": image, "label": IntField()}, num_workers=workers)
    writer.from_indexed_dataset(ImageFolder(images))


if __name__ == "__main__":
    exit_with(main)
