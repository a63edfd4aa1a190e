"""All runs below some folders: which of them train, how far they are, how good, how they ended.

    python -m ffcv_r50.runs FOLDER... [--every SECONDS]

On a terminal the table follows the runs until Ctrl-C; elsewhere it is printed once. It only reads, so
it may run on any machine that sees the folders.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ffcv_r50.config import command_line, strict_yaml
from ffcv_r50.errors import UserError, exit_with, one_line
from ffcv_r50.files import read_settings
from ffcv_r50.logs import jsonl
from ffcv_r50.logs.console import duration
from ffcv_r50.registry import Options, Range
from ffcv_r50.run.status import STATUS, read_status

STATES = {
    "running": "green",
    "finished": "bold",
    "stopped": "yellow",
    "lost": "yellow",
    "failed": "red",
}
"""What a run folder may say, and its colour."""


class Shown(Options):
    """How the table is shown."""

    every: Annotated[float, Range(at_least=0.1, at_most=86400)] = 5.0
    """Seconds between two looks at the folders, on a terminal."""


class RunState(NamedTuple):
    """A run, as its folder tells it."""

    path: Path
    state: str
    """One of :data:`STATES`; empty where the folder does not say."""
    epoch: int
    """Finished ones."""
    epochs: int | None
    """Of the whole run; None where its configuration cannot be read."""
    best: float | None
    """The highest top-1 of an epoch in %."""
    top_1: float | None
    """In %, of the last epoch."""
    images_per_second: float | None
    """Of the last epoch."""
    seconds_left: float | None
    """At the pace of the last epoch; None where it does not train."""
    words: str
    """Why it ended, or when it last spoke."""


def main() -> None:
    """Show the table."""
    names, options, unknown = command_line.with_names(Shown, sys.argv[1:], __doc__ or "")
    if unknown:
        raise UserError(f"command line: --{next(iter(unknown))}: no such option; there is --every")
    folders = [Path(name) for name in names]
    if not folders:
        raise UserError("command line: no folder; pass one that holds runs, such as runs")
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; pass one that holds runs")
    console = Console()
    if not console.is_terminal:
        console.print(_table(_states(folders), folders), crop=False)
        return
    with Live(console=console, auto_refresh=False) as live, contextlib.suppress(KeyboardInterrupt):
        while True:
            live.update(_table(_states(folders), folders), refresh=True)
            time.sleep(options.every)


def find(folder: Path) -> Iterator[Path]:
    """The run folders at or below a folder, sorted; what lies inside of one is not searched."""
    for path, folders, files in os.walk(folder):
        if "config.yaml" in files and STATUS in files:
            folders.clear()
            yield Path(path)
        folders.sort()


def read(path: Path) -> RunState:
    """What a run folder tells, whatever state its files are in."""
    status = read_status(path)
    state = str(status.get("state", ""))
    try:
        rows = jsonl.read(path / "log.jsonl")
    except OSError:
        rows = []
    last: dict[str, Any] = rows[-1] if rows else {}
    epochs = _epochs(path)
    left = None
    words = " ".join(str(status.get("reason", "")).split())
    if state == "running":
        seconds = [_number(last, key) for key in ("epoch_seconds", "eval_seconds")]
        left = (epochs - len(rows)) * sum(s or 0.0 for s in seconds) if epochs and rows else None
        words = words or _last_sign(path)
    return RunState(
        path,
        state,
        len(rows),
        epochs,
        max((n for row in rows if (n := _number(row, "top_1")) is not None), default=None),
        _number(last, "top_1"),
        _number(last, "images_per_second"),
        left,
        words,
    )


def _states(folders: Sequence[Path]) -> list[RunState]:
    return [read(path) for folder in folders for path in find(folder)]


def _epochs(path: Path) -> int | None:
    try:
        epochs = strict_yaml.load(read_settings(path / "config.yaml"))["training"]["epochs"]
    except (OSError, ValueError, TypeError, LookupError, RecursionError, yaml.YAMLError):
        return None
    return epochs if isinstance(epochs, int) else None


def _number(row: Mapping[str, Any], key: str) -> float | None:
    """Of a row of the log; None where it is none."""
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1e300 else None


def _last_sign(path: Path) -> str:
    """How long ago the run wrote something."""
    written = []
    for file in (path / STATUS, path / "log.jsonl", path / "checkpoints"):
        with contextlib.suppress(OSError):
            written.append(file.stat().st_mtime)
    ago = max(0.0, time.time() - max(written, default=time.time()))
    return f"wrote {duration(ago)} ago"


def _table(runs: Sequence[RunState], folders: Sequence[Path]) -> Table | Text:
    """The runs, one a row, named by what tells them apart."""
    if not runs:
        return Text(f"no runs below {', '.join(map(str, folders))}")
    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for head in ("epoch", "top-1", "best", "images/s", "left"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("last words", overflow="fold")
    for run in runs:
        table.add_row(
            Text(one_line(_name(run.path, folders))),
            Text(one_line(run.state) or "?", style=STATES.get(run.state, "")),
            f"{run.epoch}/{run.epochs or '?'}",
            _shown(run.top_1, ".2f"),
            _shown(run.best, ".2f"),
            _shown(run.images_per_second, ",.0f"),
            "" if run.seconds_left is None else duration(run.seconds_left),
            Text(one_line(run.words)),
        )
    return table


def _name(path: Path, folders: Sequence[Path]) -> str:
    """Below the only folder that was asked for, or whole."""
    inside = len(folders) == 1 and path != folders[0]
    return str(path.relative_to(folders[0]) if inside else path)


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    exit_with(main)
