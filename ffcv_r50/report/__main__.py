"""``python -m ffcv_r50.report RUN``: a page about a run, or its tables and pictures."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from ffcv_r50.config import command_line
from ffcv_r50.errors import UserError, exit_with
from ffcv_r50.registry import Options, Range
from ffcv_r50.report import folder, page, pictures, tables
from ffcv_r50.report.folder import Run

USAGE = """\
usage: python -m ffcv_r50.report RUN [-o FILE] [--format=html|png|csv] [--price=N]

Write what a finished or running run came to: RUN/report.html, one file that needs no network.
"""


class Asked(Options):
    """What is written."""

    format: Literal["html", "png", "csv"] = "html"
    """`html`: the page. `png`: curves, rates, confusion matrix, for a README. `csv`: classification
    report and confusion matrix."""
    output: str | None = None
    """The page, or the folder that pictures or tables go to; `-o` for short. Null stands for
    `report.html` in the run's folder, or that folder."""
    price: Annotated[float, Range(at_least=0)] | None = None
    """Of an hour of one GPU, in any currency."""


def main(argv: Sequence[str]) -> None:
    """Write what the command line asks for, and say where it is.

    Args:
        argv: see :data:`USAGE`.

    Raises:
        UserError: no run, nothing to report yet, or a fault on the command line.
    """
    named, asked, unknown = command_line.with_names(Asked, argv, USAGE, most=1)
    if not named:
        raise UserError("command line: no run; pass its folder first, such as runs/demo")
    command_line.refuse(unknown)
    run = folder.read(Path(named[0]))
    if asked.format == "html":
        output = Path(asked.output) if asked.output else run.path / page.NAME
        page.write(run, output, asked.price)
        print(output)
        return
    files = pictures.draw(run) if asked.format == "png" else _tables(run)
    for name, content in files.items():
        output = Path(asked.output or run.path) / name
        page.save(output, content)
        print(output)


def _tables(run: Run) -> dict[str, bytes]:
    found, names = run.predictions, run.class_names
    if found is None:
        raise UserError(
            f"{run.path}: has no {folder.PREDICTIONS}, which the tables are made of; only runs that "
            "recorded their predictions have one"
        )
    return {
        "classes.csv": tables.classification_report(found, names).encode(),
        "confusion.csv": tables.confusion_matrix(found, names).encode(),
    }


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
