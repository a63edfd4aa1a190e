"""The logs of a run: one JSON object a line, each epoch once, each step once."""

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ffcv_r50.files import atomic_write, parse_json, regular_file
from ffcv_r50.logs.row import EpochRow, StepRow


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one row, durably.

    Raises:
        OSError: the row cannot be written; no part of it is left.
    """
    _append_lines(path, [json.dumps(row)], durably=True)


def _append_lines(path: Path, lines: Sequence[str], *, durably: bool) -> None:
    with open(path, "ab", buffering=0) as file:
        end = file.tell()
        content = "".join(f"{line}\n" for line in lines).encode()
        try:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durably:
                os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def read(path: Path) -> list[dict[str, Any]]:
    """All whole rows, see :func:`rows`."""
    return list(rows(path))


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """One whole row after another; what is none (a line cut short by a kill) is left out. No file: no
    rows."""
    if not path.exists():
        return
    with open(path, "rb", opener=regular_file) as file:
        for line in file:
            with contextlib.suppress(ValueError):
                row = parse_json(line)
                if isinstance(row, dict):
                    yield row


def rewind(path: Path, epochs: int) -> None:
    """Keep the rows of the first ``epochs`` epochs; drop what a killed start wrote after them."""
    if path.exists():
        kept = [row for row in rows(path) if number(row, "epoch") < epochs]
        with atomic_write(path) as file:
            file.write("".join(json.dumps(row) + "\n" for row in kept).encode())


class EpochLog:
    """``log.jsonl``: a row an epoch, on the disk before the state that goes with it.

    A row that cannot be written (a full disk) is written before the next one.

    Args:
        path: of the file.
        warn: is given a line where it cannot be written.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path = path
        self._warn = warn
        self._unwritten: list[dict[str, Any]] = []

    def epoch(self, row: EpochRow) -> None:
        """Append the row."""
        self._unwritten.append(row.values())
        self.flush()

    def rewind(self, epochs: int) -> None:
        """Drop the rows of later epochs: a killed start may have written one before its state."""
        rewind(self.path, epochs)

    def flush(self) -> None:
        """Try (once more) to write what is not written."""
        try:
            while self._unwritten:
                append(self.path, self._unwritten[0])
                del self._unwritten[0]
        except OSError as error:
            self._warn(unwritable(self.path, error))


class StepLog:
    """``steps.jsonl``: a row a step, short where steps are thinned out.

    Rows are written with every measured one, and are on the disk before a state that covers them.
    Where they cannot be written (a full disk) they are later.

    Args:
        path: of the file.
        warn: is given a line when it cannot be written.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path = path
        self._warn = warn
        self._warned = False
        self._unwritten: list[str] = []

    def step(self, row: StepRow) -> None:
        """Append the row, at once or with a later one."""
        self._unwritten.append(json.dumps(row.values()))
        if row.measured:
            self.flush()

    def flush(self, *, durably: bool = False) -> None:
        """Write what is not written.

        Args:
            durably: to the disk, not only to the system.
        """
        if not self._unwritten and not durably:
            return
        try:
            _append_lines(self.path, self._unwritten, durably=durably)
            self._unwritten.clear()
        except OSError as error:
            if not self._warned:
                self._warn(unwritable(self.path, error))
            self._warned = True

    def rewind(self, steps: int) -> None:
        """Keep the rows of the first steps."""
        self._unwritten.clear()
        with contextlib.suppress(FileNotFoundError), open(self.path, "r+b") as file:
            end = 0
            for line in file:
                if not line.endswith(b"\n") or _step(line) >= steps:
                    break
                end += len(line)
            file.truncate(end)


def numbers(row: dict[str, Any]) -> dict[str, Any]:
    """Those values of a row, which anybody may have written, that are numbers."""
    return {
        key: value
        for key, value in row.items()
        if isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 53)
    }


def last_row(path: Path) -> dict[str, Any]:
    """The numbers of the newest row; empty where there is none."""
    last: dict[str, Any] = {}
    for row in rows(path):
        last = row
    return numbers(last)


def number(row: Any, key: str) -> float:
    """Of the epoch or step that a row is about; behind all others where it does not say."""
    found = row.get(key) if isinstance(row, dict) else None
    return found if isinstance(found, int) and found >= 0 else math.inf


def _step(line: bytes) -> float:
    try:
        return number(parse_json(line), "step")
    except ValueError:
        return math.inf


def unwritable(path: Path, error: OSError) -> str:
    """A line for the user about a file that the run can do without."""
    return f"{path}: cannot be written ({error.strerror}); make room there. Training goes on"
