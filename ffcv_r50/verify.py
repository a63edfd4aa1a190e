"""Did two runs see the same data at the same rates? The first step at which they did not.

    python -m ffcv_r50.verify A B

A and B are folders of runs, finished or not, on however many processes. Their ``steps.jsonl`` has a
fingerprint of each step's samples, crops and labels, and its learning rate and resolution. Exit code 0
where all steps that both have agree, so that what differs is arithmetic alone; 1 where they do not.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ffcv_r50.errors import FAULT, FINISHED, UserError, exit_with
from ffcv_r50.files import parse_json
from ffcv_r50.run import compatibility

SAME_RATE = 1e-12
"""Relative difference of two learning rates that are one: rounding of the formula, not another one."""


class Compared(NamedTuple):
    """What two logs of steps have in common."""

    steps: int
    """That both have and that agree, from the first on."""
    epochs: float
    """Where in the run the last of them lies, as far as that was recorded."""
    different: str
    """What is other in the next step; empty where one of the logs ends there."""
    largest: float
    """Relative difference of their losses, of those steps at which both were recorded."""
    first: int | None
    """The first step whose loss differs."""
    losses: int
    """Steps at which both were recorded."""


def main() -> int:
    """Compare and say it."""
    words = sys.argv[1:]
    if words in (["--help"], ["-h"]):
        print((__doc__ or "").strip())
        return FINISHED
    if len(words) != 2 or any(word.startswith("-") for word in words):
        raise UserError("command line: pass the folders of two runs")
    folders = [Path(word) for word in words]
    logs = [rows(folder) for folder in folders]
    found = compare(*logs)
    for line in told(found, folders):
        print(line)
    return FAULT if found.different else FINISHED


def rows(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a run's log of steps, one after another.

    Raises:
        UserError: there is no such log, or a line of it is damaged.
    """
    path = folder / "steps.jsonl"
    if not path.is_file():
        raise UserError(
            f"{folder}: has no {path.name}; name the folder of a run (older versions recorded no steps)"
        )

    def read() -> Iterator[Mapping[str, Any]]:
        with open(path, "rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    return  # it is being written, or was cut short by a kill
                try:
                    row = parse_json(line)
                    if (
                        row["step"] != number
                        or not {"lr", "resolution", "fingerprint"} <= row.keys()
                    ):
                        raise ValueError("is not the step's")
                except (ValueError, LookupError, TypeError, AttributeError) as error:
                    raise UserError(f"{path}:{number + 1}: is damaged ({error})") from error
                yield row

    return read()


def compare(a: Iterator[Mapping[str, Any]], b: Iterator[Mapping[str, Any]]) -> Compared:
    """Step by step, until they differ or one ends."""
    steps, epochs, largest, losses = 0, 0.0, 0.0, 0
    first = None
    for mine, other in zip(a, b, strict=False):
        if different := ", ".join(_differences(mine, other)):
            return Compared(steps, epochs, different, largest, first, losses)
        if "loss" in mine and "loss" in other:
            difference = _relative(mine["loss"], other["loss"])
            largest, losses = max(largest, difference), losses + 1
            epochs = mine.get("epoch", epochs)
            if difference and first is None:
                first = steps
        steps += 1
    return Compared(steps, epochs, "", largest, first, losses)


def told(found: Compared, folders: Sequence[Path]) -> Iterator[str]:
    """The lines for a person."""
    if found.different:
        yield (
            f"step {found.steps:,}: {found.different}"
            + (f"; the {found.steps:,} steps before agree" if found.steps else "")
        )
        yield from _why(folders)
        return
    if not found.steps:
        yield "no step that both have"
        return
    yield f"the same data at the same rates in all {found.steps:,} steps that both have"
    if found.first is None:
        yield f"the same losses, to the bit, in the {found.losses:,} steps that recorded them"
    else:
        yield (
            f"they differ by arithmetic alone: losses by {found.largest:.1e} of their size at most, "
            f"from step {found.first:,} on"
        )


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """What is other in a step."""
    if a["resolution"] != b["resolution"]:
        yield f"another resolution ({a['resolution']} and {b['resolution']} px)"
    if _relative(a["lr"], b["lr"]) > SAME_RATE:
        yield f"another learning rate ({a['lr']:g} and {b['lr']:g})"
    if a["fingerprint"] != b["fingerprint"]:
        yield "other data (samples, crops or labels)"


def _why(folders: Sequence[Path]) -> Iterator[str]:
    """The settings that differ, where they can be read."""
    try:
        found = compatibility.saved_differences(*folders)
    except UserError:
        return
    if found:
        texts = [f"{key} ({a} and {b})" for key, (a, b) in found.items()]
        yield f"their settings differ: {', '.join(texts)}"
    else:
        yield "their settings are the same: look at the datasets, and at what each start permitted"


def _relative(a: float, b: float) -> float:
    """Difference as a share of the larger; two that are not finite are the same if they look so."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    share = abs(a - b) / max(abs(a), abs(b))
    return share if math.isfinite(share) else math.inf


if __name__ == "__main__":
    exit_with(main)
