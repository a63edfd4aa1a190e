"""The log of a run: one JSON object a line, each epoch once."""

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ffcv_r50.files import atomic_write, parse_json
from ffcv_r50.logs.row import EpochRow


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one row, durably.

    Raises:
        OSError: the row cannot be written; no part of it is left.
    """
    with open(path, "ab", buffering=0) as file:
        end = file.tell()
        line = (json.dumps(row) + "\n").encode()
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def read(path: Path) -> list[dict[str, Any]]:
    """All whole rows; what is none (a line cut short by a kill) is left out. No file: no rows."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def rewind(path: Path, epochs: int) -> None:
    """Keep the rows of the first ``epochs`` epochs; drop what a killed start wrote after them."""
    if path.exists():
        kept = [row for row in read(path) if row["epoch"] < epochs]
        with atomic_write(path) as file:
            file.write("".join(json.dumps(row) + "\n" for row in kept).encode())


class JsonLines:
    """The log of a run as a :class:`~ffcv_r50.logs.sinks.Sink`.

    A row that cannot be written (a full disk) is written before the next one.

    Args:
        path: of the file.
        warn: is given a line where it cannot be written.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path = path
        self._warn = warn
        self._unwritten: list[dict[str, Any]] = []

    def step(self, number: int, values: Mapping[str, float]) -> None:
        """Steps are not logged here."""

    def epoch(self, row: EpochRow) -> None:
        """Append the row."""
        self._unwritten.append(row.values())
        self._write()

    def rewind(self, epochs: int, steps: int) -> None:
        """Drop the rows of later epochs: a killed start may have written one before its state."""
        rewind(self._path, epochs)

    def close(self) -> None:
        """Try once more what could not be written."""
        self._write()

    def _write(self) -> None:
        try:
            while self._unwritten:
                append(self._path, self._unwritten[0])
                del self._unwritten[0]
        except OSError as error:
            self._warn(
                f"{self._path}: cannot be written ({error.strerror}); make room there. "
                "Training goes on"
            )
