"""Files that appear under their name only when they are whole, and files that anybody may have made."""

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

JSON_BYTES = 64 << 20
"""Of a JSON file, at most; the largest of ours are a few megabytes."""

Arrays = Mapping[str, npt.NDArray[Any]]
"""By their names."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; on success sync it and rename it to ``path``.

    Whatever happens in between (an exception, a kill, a full disk), ``path`` holds either what
    it held before or the whole new content. On an exception the temporary file is removed; a
    killed process leaves ``.<name>.<pid>.tmp`` behind.

    Yields:
        A binary file open for reading and writing, to be filled by the caller.

    Raises:
        OSError: the folder is not writable, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays by name as numpy's ``.npz``, whole or not at all.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # its own keywords are none of ours
    with atomic_write(path) as file:
        file.write(content.getbuffer())


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable; file systems that cannot sync a folder are left be."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is none, or is nested deeper than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deep") from None


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or larger or deeper than any that is ours.
    """
    with open(path, "rb") as file:
        text = file.read(JSON_BYTES + 1)
    if len(text) > JSON_BYTES:
        raise ValueError(f"has more than {JSON_BYTES >> 20} MiB")
    return parse_json(text)


def read_record(path: Path) -> dict[str, Any]:
    """What a file with a JSON object says; empty where it cannot be read."""
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
