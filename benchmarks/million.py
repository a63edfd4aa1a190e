"""A dataset of very many small images: what writing, opening, inspecting and joining it takes.

    python -m benchmarks.million FOLDER [--images=1000000]

Images are 16 x 16 raw pixels of noise, made as they are asked for: this measures what a sample costs
besides its pixels. Each step runs in a process of its own, whose peak memory is said. What is joined is
the file and its copy. FOLDER needs about 4 kB an image; the files made in it are removed.
"""

import functools
import hashlib
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

from ffcv_r50.config import command_line
from ffcv_r50.data import samples
from ffcv_r50.data.beton import Beton, sidecar_path
from ffcv_r50.errors import FINISHED, RunFault, UserError, exit_with
from ffcv_r50.registry import Options, Range
from writers import merge, writing
from writers.config import Writing
from writers.inspect import __main__ as inspect_program
from writers.sources import SOURCES, Read, SourceOptions

SIDE = 16
CLASSES = 1000


class Asked(Options):
    """How large it is."""

    images: Annotated[int, Range(at_least=CLASSES)] = 1_000_000
    """Images that are written."""


@dataclass(frozen=True)
class Noise:
    """Images in classes of equal size, class by class; a :class:`~writers.sources.Source`."""

    root: Path
    classes: list[str]
    names: list[str]
    labels: list[int]
    ignored: int = 0

    def place(self, index: int) -> str:
        """Its number."""
        return f"image {index}"

    def reader(self, index: int) -> Read:
        """See :func:`noise`."""
        return functools.partial(noise, index)


def noise(index: int) -> bytes:
    """A small image file."""
    pixels = hashlib.shake_128(b"%d" % index).digest(3 * SIDE * SIDE)
    return b"P6 %d %d 255\n" % (SIDE, SIDE) + pixels


@SOURCES.register("noise")
class NoiseOptions(SourceOptions):
    """As many images as `data_dir` says."""

    def build(self, data_dir: str, split: str) -> Noise:
        """Name them."""
        count = int(data_dir)
        labels = [i * CLASSES // count for i in range(count)]
        names = [f"{label:04}/{i:08}.ppm" for i, label in enumerate(labels)]
        return Noise(Path("noise"), [f"{i:04}" for i in range(CLASSES)], names, labels)


def write(images: int, path: str) -> None:
    """A step, as those below."""
    writing.write(Writing(dataset="noise", data_dir=str(images), write_path=path, write_mode="raw"))


def inspect(path: str, *options: str) -> None:
    """The numbers, and what the options ask for."""
    if inspect_program.main([path, *options]) != FINISHED:
        raise RunFault(f"{path}: something is wrong with what was just written")


def open_file(path: str) -> None:
    """Open it."""
    Beton(path)


def copy_dataset(source: Path, target: Path) -> None:
    """Copy it with what lies beside it."""
    for place in (Path, sidecar_path, samples.path_beside):
        shutil.copyfile(place(source), place(target))


def measured(step: Callable[[], None]) -> tuple[float, float]:
    """Seconds, and peak memory of this process in MB."""
    start = time.monotonic()
    step()
    seconds = time.monotonic() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Do the steps one after the other."""
    names, asked, unknown = command_line.with_names(
        Asked, sys.argv[1:] or ["--help"], __doc__ or ""
    )
    if unknown or len(names) != 1 or not Path(names[0]).is_dir():
        raise UserError("command line: write: python -m benchmarks.million FOLDER [--images=N]")
    with tempfile.TemporaryDirectory(dir=names[0], prefix="million-") as folder:
        lines = list(steps_in(Path(folder), asked.images))
    print("", *lines, sep="\n")


def steps_in(folder: Path, images: int) -> Iterator[str]:
    """Do the steps in a folder, each in a process of its own; a line of each."""
    one, copy, joined = (folder / f"{name}.beton" for name in ("one", "copy", "joined"))
    steps: dict[str, Callable[[], None]] = {
        "write": functools.partial(write, images, str(one)),
        "open": functools.partial(open_file, str(one)),
        "inspect": functools.partial(inspect, str(one)),
        "inspect --verify": functools.partial(inspect, str(one), "--verify"),
        "copy": functools.partial(copy_dataset, one, copy),
        "merge": functools.partial(merge.merge, str(joined), [str(one), str(copy)]),
        "open the joined": functools.partial(open_file, str(joined)),
    }
    for name, step in steps.items():
        with ProcessPoolExecutor(1, get_context("spawn")) as executor:
            seconds, peak = executor.submit(measured, step).result()
        line = f"{name:20} {seconds:8.1f} s {peak:8,.0f} MB"
        print(line, flush=True)
        yield line


if __name__ == "__main__":
    exit_with(main)
