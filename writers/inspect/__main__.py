"""Say what a `.beton` file holds: samples, classes, sizes, how images are stored.

    python -m writers.inspect FILE [--verify] [--stats] [--thumbnails=grid.png]
    python -m writers.inspect FILE --extract=N [--output=image.jpg]
    python -m writers.inspect VAL --compare=TRAIN

Exit codes: 0 nothing is wrong; 1 something was found: damage, or images that are in both files; 2 the
file or the command line is wrong. Any FFCV file will do; names and hashes are known of our writer's.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from ffcv_r50.config import command_line
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import FAULT, FINISHED, UserError, exit_with
from ffcv_r50.registry import Options, Range
from writers.inspect import compare, pictures, stats, summary, verify

FOUND = FAULT
"""The exit code where something is wrong with the data."""


class Asked(Options):
    """What is said of the file."""

    verify: bool = False
    """Decode every image and compare it, and all other bytes of the file, with the hashes that the
    writer left."""
    stats: bool = False
    """Mean and deviation of each channel over all pixels; each image counts the same."""
    extract: Annotated[int, Range(at_least=0)] | None = None
    """Write this sample (from 0) to a file: the stored JPEG, or its pixels as a PNG."""
    output: str | None = None
    """The file for `extract`; null names it by dataset and sample, in the current folder."""
    thumbnails: str | None = None
    """A picture to draw with the first image of each class."""
    compare: str | None = None
    """Another `.beton` file: which images are in both?"""


def main(argv: Sequence[str]) -> int:
    """Do what the command line says.

    Returns:
        The exit code.

    Raises:
        UserError: the command line or a file is wrong.
    """
    names, asked, unknown = command_line.with_names(
        Asked, argv or ["--help"], __doc__ or "", most=1
    )
    command_line.refuse(unknown)
    if not names:
        raise UserError("command line: no file; write: python -m writers.inspect FILE")
    if asked.output and asked.extract is None:
        raise UserError("command line: --output has no effect without --extract=N")
    for target in (asked.output, asked.thumbnails):
        if target and Path(target).is_dir():
            raise UserError(f"{target}: is a folder; name the file to write")
        if target and not Path(target).parent.is_dir():
            raise UserError(f"{target}: its folder does not exist; create it first")
    dataset = Beton(names[0])
    if asked.extract is not None:
        pictures.extract(dataset, asked.extract, asked.output)
        return FINISHED
    other = Beton(asked.compare) if asked.compare else None
    summary.show(summary.summary(dataset))
    if asked.thumbnails:
        pictures.thumbnails(dataset, Path(asked.thumbnails))
    found = False
    if asked.verify:
        found |= verify.verify(dataset)
    if asked.stats:
        stats.show(stats.stats(dataset))
    if other:
        found |= compare.compare(dataset, other)
    return FOUND if found else FINISHED


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
