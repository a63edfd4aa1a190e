"""Files that appear under their name only when they are whole, and files that anybody may have made."""

import contextlib
import errno
import io
import json
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy.typing as npt

JSON_BYTES = 64 << 20
"""Of a JSON file, at most; the largest of ours are a few megabytes."""
YAML_BYTES = 1 << 20
"""Of settings as YAML, at most; ours are a few kilobytes, and PyYAML reads some 100 kB a second."""

Arrays = Mapping[str, "npt.NDArray[Any]"]
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
    import numpy as np  # not above: supervisors, which should weigh nothing, read files too

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


def regular_file(path: str | os.PathLike[str], flags: int) -> int:
    """An ``opener`` for :func:`open`, for reading what anybody may have put there.

    Opening a pipe would wait for its writer, and a device may never end.

    Returns:
        The descriptor.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        raise OSError(errno.EINVAL, "Not a regular file", os.fspath(path))
    return descriptor


def no_link(path: str | os.PathLike[str], flags: int) -> int:
    """An ``opener`` for :func:`open`, for writing where others may have put a link or a pipe first.

    Returns:
        The descriptor.

    Raises:
        OSError: it cannot be opened, or is a symbolic link.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


def read_settings(path: Path) -> str:
    """The text of a run's saved settings.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, or larger than settings are.
    """
    with open(path, "rb", opener=regular_file) as file:
        content = file.read(YAML_BYTES + 1)
    if len(content) > YAML_BYTES:
        raise ValueError(f"has more than {YAML_BYTES >> 20} MiB")
    return content.decode()


def check_archive(file: BinaryIO) -> None:
    """See that an archive (torch's, numpy's) does not hold more than the file that it lies in: neither
    of them compresses, and a few compressed or overlapping bytes can stand for terabytes.

    Args:
        file: at its beginning, and left there.

    Raises:
        ValueError: it does.
        zipfile.BadZipFile: it is no archive.
    """
    with zipfile.ZipFile(file) as archive:
        inside = sum(member.file_size for member in archive.infolist())
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    if inside > length:
        raise ValueError(f"its {length:,} bytes say they hold {inside:,}")


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
    with open(path, "rb", opener=regular_file) as file:
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
