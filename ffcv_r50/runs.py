"""All runs below some folders: which of them train, how far they are, how good, how they ended.

    python -m ffcv_r50.runs FOLDER... [--every SECONDS]

On a terminal the table follows the runs until Ctrl-C; elsewhere it is printed once. It only reads, so
it may run on any machine that sees the folders.
"""

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ffcv_r50.config import command_line, reference
from ffcv_r50.errors import UserError, exit_with
from ffcv_r50.logs import jsonl
from ffcv_r50.logs.console import duration
from ffcv_r50.registry import Options, Range

STATES = {
    "running": "green",
    "finished": "bold",
    "stopped": "yellow",
    "killed": "yellow",
    "lost": "yellow",
    "failed": "red",
}
"""What a run folder's ``status.json`` may say, and ``killed``: it says ``running``, but nothing runs."""


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
    argv = sys.argv[1:]
    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    words = command_line.split(argv[count:])
    if "help" in words:
        reference.print_page(reference.help_text(Shown, __doc__ or ""))
        return
    options = command_line.take(Shown, words)
    if words:
        raise UserError(f"command line: --{next(iter(words))}: no such option; there is --every")
    folders = [Path(word) for word in argv[:count]]
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
        if "config.yaml" in files and "status.json" in files:
            folders.clear()
            yield Path(path)
        folders.sort()


def read(path: Path) -> RunState:
    """What a run folder tells, whatever state its files are in."""
    status = _status(path)
    state = str(status.get("state", ""))
    rows = jsonl.read(path / "log.jsonl")
    last: dict[str, Any] = rows[-1] if rows else {}
    epochs = _epochs(path)
    left = None
    words = " ".join(str(status.get("reason", "")).split())
    if state == "running":
        if _held(path / "lock"):
            seconds = last.get("epoch_seconds", 0.0) + last.get("eval_seconds", 0.0)
            left = (epochs - len(rows)) * seconds if epochs and rows else None
            words = words or _last_sign(path)
        else:
            state = "killed"
            words = words or "the same command continues it"
    return RunState(
        path,
        state,
        len(rows),
        epochs,
        max((row["top_1"] for row in rows if "top_1" in row), default=None),
        last.get("top_1"),
        last.get("images_per_second"),
        left,
        words,
    )


def _states(folders: Sequence[Path]) -> list[RunState]:
    return [read(path) for folder in folders for path in find(folder)]


def _status(path: Path) -> dict[str, Any]:
    try:
        status = json.loads((path / "status.json").read_text())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def _epochs(path: Path) -> int | None:
    try:
        return int(yaml.safe_load((path / "config.yaml").read_text())["training"]["epochs"])
    except (OSError, ValueError, TypeError, LookupError, yaml.YAMLError):
        return None


def _held(lock: Path) -> bool:
    """Whether a live run holds its folder; so it seems where that cannot be asked.

    Asking takes a shared lock for a moment, which a run that starts just then waits for.
    """
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # held, or a file system without locks
        return True
    return False


def _last_sign(path: Path) -> str:
    """How long ago the run wrote something."""
    written = []
    for file in (path / "status.json", path / "log.jsonl", path / "checkpoints"):
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
            Text(_name(run.path, folders)),
            Text(run.state or "?", style=STATES.get(run.state, "")),
            f"{run.epoch}/{run.epochs or '?'}",
            _number(run.top_1, ".2f"),
            _number(run.best, ".2f"),
            _number(run.images_per_second, ",.0f"),
            "" if run.seconds_left is None else duration(run.seconds_left),
            Text(run.words),
        )
    return table


def _name(path: Path, folders: Sequence[Path]) -> str:
    """Below the only folder that was asked for, or whole."""
    inside = len(folders) == 1 and path != folders[0]
    return str(path.relative_to(folders[0]) if inside else path)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    exit_with(main)
