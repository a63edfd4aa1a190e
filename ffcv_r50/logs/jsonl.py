"""The log of a run: one JSON object a line, each epoch once."""

import errno
import json
import os
from pathlib import Path
from typing import Any

from ffcv_r50.files import atomic_write


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
    """All whole rows; a last line cut short by a kill is left out. No file: no rows."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def rewind(path: Path, epochs: int) -> None:
    """Keep the rows of the first ``epochs`` epochs; drop what a killed start wrote after them."""
    if path.exists():
        kept = [row for row in read(path) if row["epoch"] < epochs]
        with atomic_write(path) as file:
            file.write("".join(json.dumps(row) + "\n" for row in kept).encode())
