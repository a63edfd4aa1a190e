"""What a network reached on several evaluation sets: ``evaluation.json`` in a run's folder, a table."""

import json
from collections.abc import Sequence
from pathlib import Path

from ffcv_r50.errors import UserError
from ffcv_r50.files import atomic_write, read_json
from ffcv_r50.registry import Options
from ffcv_r50.report.numbers import wilson

FILE = "evaluation.json"


class Result(Options):
    """On one set."""

    name: str
    file: str
    images: int
    """That count, each once."""
    classes: int
    """That the network chose among."""
    top_1: float
    """In %, as the others."""
    top_1_interval: tuple[float, float]
    """95 % (Wilson)."""
    top_5: float
    top_5_interval: tuple[float, float]


class Evaluation(Options):
    """Of one network, on all sets."""

    weights: str
    """The file."""
    time: str
    seen: str
    """How images were looked at: size and test-time augmentation."""
    sets: tuple[Result, ...]


def result(name: str, file: str, classes: int, images: int, top_1: int, top_5: int) -> Result:
    """The row of a set.

    Args:
        name: of the set.
        file: that it is.
        classes: that the network chose among.
        images: that count.
        top_1, top_5: how many of them were right at once, and among the first five.
    """
    around_1, around_5 = wilson(top_1, images), wilson(top_5, images)
    return Result(
        name=name,
        file=file,
        images=images,
        classes=classes,
        top_1=100 * top_1 / images,
        top_1_interval=(100 * around_1.low, 100 * around_1.high),
        top_5=100 * top_5 / images,
        top_5_interval=(100 * around_5.low, 100 * around_5.high),
    )


def write(evaluation: Evaluation, folder: Path) -> None:
    """As :data:`FILE`.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_write(folder / FILE) as file:
        file.write((json.dumps(evaluation.model_dump(), indent=1) + "\n").encode(errors="replace"))


def read(folder: Path) -> Evaluation | None:
    """What the newest evaluation in a run's folder came to; None where there was none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / FILE
    try:
        return Evaluation.model_validate(read_json(path), strict=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: is not what an evaluation writes ({type(error).__name__}); remove it"
        ) from error


HEAD = ("set", "images", "classes", "top-1 %", "95 %", "top-5 %", "95 %")


def cells(one: Result) -> tuple[str, ...]:
    """A row of the table, under :data:`HEAD`."""

    def span(interval: tuple[float, float]) -> str:
        return "{:.2f} to {:.2f}".format(*interval)

    return (
        one.name,
        f"{one.images:,}",
        f"{one.classes:,}",
        f"{one.top_1:.3f}",
        span(one.top_1_interval),
        f"{one.top_5:.3f}",
        span(one.top_5_interval),
    )


def lines(results: Sequence[Result]) -> list[str]:
    """The table as text."""
    rows = [HEAD, *map(cells, results)]
    name, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join([row[0].ljust(name), *(c.rjust(w) for c, w in zip(row[1:], widths, strict=True))])
        for row in rows
    ]
