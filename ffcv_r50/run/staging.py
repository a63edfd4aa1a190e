"""Copies of the dataset on each node's own disk: a shared file system serves random reads slowly.

The first process of each node copies, or finds the copy that it made before and reads it once to see
that it is still whole. Meanwhile all processes of the run exchange a small message once a second, so
this may take longer than a collective's time-out, and one that fails ends all of them. Runs that share
a folder wait for each other through a lock, which the system frees should its holder die.
"""

import fcntl
import functools
import glob
import json
import os
import shutil
import socket
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from ffcv_r50 import distributed
from ffcv_r50.data.beton import sidecar_path
from ffcv_r50.errors import UserError
from ffcv_r50.files import atomic_write, no_link, read_record

CHUNK = 16 * 2**20
RESERVE = 1.01
"""Room that a copy needs, as a multiple of the file."""
REPORT_SECONDS = 10.0
POLL_SECONDS = 1.0


def stage(
    files: Sequence[str],
    folder: str,
    say: Callable[[str], None] | None = None,
    *,
    copies: bool = True,
) -> list[str]:
    """Copy ``files`` (and the JSON files beside them) to ``folder`` once per node.

    A copy that is there already is used again if it is of this very file (path, size, time of
    change) and its checksum still holds. All ranks must call this.

    Args:
        files: ``.beton`` files.
        folder: on the node's own disk; made if it is not there.
        say: is given lines of progress, in another thread, on the ranks that copy;
            they are printed where it is None.
        copies: whether this is the process of its node that copies.

    Returns:
        Where the copies are, in the order of ``files``.

    Raises:
        UserError: a file cannot be read, or there is no room; the same on every rank.
    """
    say = say or functools.partial(print, flush=True)
    staged = [_copy_of(Path(file), Path(folder)) for file in files]
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for file, copy in zip(files, staged, strict=True):
                _stage_one(Path(file), copy, say)
        except BaseException as error:  # whatever it is, the caller raises it
            failed.append(error)

    thread = threading.Thread(target=work, name="staging", daemon=True)
    if copies:
        thread.start()
    _wait_for_all(thread)
    with distributed.errors_on_all_ranks():
        for error in failed:
            if isinstance(error, OSError):
                raise UserError(
                    f"data.stage_dir={folder} on {socket.gethostname()}: "
                    f"{error.filename or 'a file'}: {error.strerror}"
                ) from error
            raise error
    return [str(copy) for copy in staged]


def _copy_of(source: Path, folder: Path) -> Path:
    """Where the copy lies; files of one name from several folders do not take each other's place."""
    tag = f"{zlib.crc32(os.fsencode(source.absolute())):08x}"
    return folder / f"{source.stem}-{tag}{source.suffix}"


def _wait_for_all(thread: threading.Thread) -> None:
    while True:
        if thread.is_alive():
            thread.join(POLL_SECONDS)
        busy = torch.tensor([int(thread.is_alive())])
        if dist.is_initialized():
            dist.all_reduce(busy)
        if not busy.item():
            return


def _stage_one(source: Path, copy: Path, say: Callable[[str], None]) -> None:
    try:
        stat = source.stat()
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from error
    origin: dict[str, object] = {
        "source": str(source.absolute()),
        "size": stat.st_size,
        "changed": stat.st_mtime_ns,
    }
    copy.parent.mkdir(parents=True, exist_ok=True)
    with open(copy.with_name(f"{copy.name}.lock"), "ab", opener=no_link) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _copy_unless_there(source, copy, copy.with_name(f"{copy.name}.staged"), origin, say)
        _copy_sidecar(sidecar_path(source), sidecar_path(copy))


def _is_ours(copy: Path) -> bool:
    """Whether it is there and this user made it: the checksum beside another's proves nothing."""
    return copy.exists() and copy.lstat().st_uid == os.geteuid()


def _copy_sidecar(source: Path, copy: Path) -> None:
    """Each time: it is small, and may change or vanish without the dataset."""
    if source.exists():
        with atomic_write(copy) as file:
            file.write(source.read_bytes())
    else:
        copy.unlink(missing_ok=True)


def _copy_unless_there(
    source: Path,
    copy: Path,
    marker: Path,
    origin: dict[str, object],
    say: Callable[[str], None],
) -> None:
    size = source.stat().st_size
    staged = read_record(marker)
    if {**staged, "checksum": 0} == {**origin, "checksum": 0} and _is_ours(copy):
        if copy.stat().st_size == size and _checksum(copy) == staged["checksum"]:
            return
        say(f"{copy}: is not what was staged; copying it again")
    marker.unlink(missing_ok=True)
    copy.unlink(missing_ok=True)
    for left in copy.parent.glob(
        f".{glob.escape(copy.name)}.*.tmp"
    ):  # of a process that was killed
        left.unlink(missing_ok=True)
    free = shutil.disk_usage(copy.parent).free
    if free < size * RESERVE:
        raise UserError(
            f"data.stage_dir={copy.parent} on {socket.gethostname()}: {free / 1e9:.1f} GB free, "
            f"{source} has {size / 1e9:.1f} GB; make room, choose another disk, or leave it out"
        )
    began = reported = time.monotonic()
    checksum, done = 0, 0
    with open(source, "rb") as reader, atomic_write(copy) as writer:
        while chunk := reader.read(CHUNK):
            writer.write(chunk)
            checksum = zlib.crc32(chunk, checksum)
            done += len(chunk)
            now = time.monotonic()
            if now - reported >= REPORT_SECONDS:
                reported = now
                say(
                    f"staging {source} on {socket.gethostname()}: {done / size:.0%} of "
                    f"{size / 1e9:.1f} GB, {done / (now - began) / 1e6:,.0f} MB/s"
                )
    if done != size or _checksum(copy) != checksum:
        copy.unlink(missing_ok=True)
        raise UserError(
            f"{copy} on {socket.gethostname()}: differs from {source} after copying; the source "
            "changed meanwhile, or a disk is failing"
        )
    with atomic_write(marker) as file:
        file.write(json.dumps({**origin, "checksum": checksum}).encode())
    seconds = time.monotonic() - began
    say(f"staged {source} on {socket.gethostname()}: {size / 1e9:.1f} GB in {seconds:.0f} s")


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
