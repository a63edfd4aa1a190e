"""A file behind a slow disk: a FUSE mount over a file of the same bytes, with a rate and a latency.

The kernel speaks to it as to any other file system: page cache, read-ahead and ``posix_fadvise`` are
Linux's own. Requests are served one after another at the disk's rate, those that do not begin where
the last one ended after a seek; each answer takes the latency more, many at a time. What is asked
for is counted. Root is needed, as for any mount.

The protocol is Linux's (``include/uapi/linux/fuse.h``, version 7.31), spoken to ``/dev/fuse``
directly: a single file takes six of its messages.
"""

import collections
import contextlib
import ctypes
import errno
import mmap
import multiprocessing
import os
import select
import stat
import struct
import time
from collections.abc import Iterator
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import NamedTuple

from ffcv_r50.errors import UserError

GETATTR, OPEN, READ, RELEASE, FLUSH, INIT = 3, 14, 15, 18, 25, 26
FORGET, INTERRUPT, BATCH_FORGET = 2, 36, 42
UNANSWERED = FORGET, INTERRUPT, BATCH_FORGET
REQUEST = struct.Struct(
    "<IIQQIIII"
)  # length, operation, unique, node, user, group, process, padding
ANSWER = struct.Struct("<IiQ")  # length, error, unique
LARGEST = 1 << 20
"""Bytes of a message."""
IN_FLIGHT = 128
"""Requests of read-ahead that Linux sends before the first is answered."""
LATE = 0.01
"""Seconds by which the server may wake up late without the disk being idle for it."""
ASYNC_READ, MAX_PAGES = 1 << 0, 1 << 22


class Disk(NamedTuple):
    """How slow it is."""

    rate: float
    """Bytes a second."""
    latency: float
    """Seconds from a request to its answer, besides the transfer."""
    seek: float
    """Seconds before a transfer that does not begin where the last one ended; nothing else is
    transferred meanwhile."""


class Counts(NamedTuple):
    """What a disk has done so far."""

    bytes: int
    requests: int


class SlowFile:
    """A file as a slow disk holds it, while the ``with`` lasts; see :func:`mounted`."""

    def __init__(self, path: Path, counts: "Synchronized[int]") -> None:
        self.path = path
        self._counts = counts

    @property
    def counts(self) -> Counts:
        """What was asked of it so far."""
        with self._counts.get_lock():
            return Counts(*self._counts)  # type: ignore[misc]


@contextlib.contextmanager
def mounted(source: Path, mount_point: Path, disk: Disk) -> Iterator[SlowFile]:
    """Have a file behind a slow disk.

    Args:
        source: the bytes; read through the page cache, so read it once before.
        mount_point: a new file, which shows these bytes meanwhile.
        disk: how slow it is.

    Raises:
        UserError: this machine does not permit it.
    """
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        raise UserError(
            f"/dev/fuse: cannot be opened ({error.strerror}); run this as root"
        ) from error
    mount_point.touch()
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={device},rootmode={stat.S_IFREG | 0o444:o},user_id=0,group_id=0,allow_other"
    if libc.mount(b"slow", bytes(mount_point), b"fuse", 0, options.encode()):
        os.close(device)
        reason = os.strerror(ctypes.get_errno())
        raise UserError(f"{mount_point}: cannot be mounted ({reason}); run this as root")
    context = multiprocessing.get_context("fork")
    counts = context.Array("q", 2)
    server = context.Process(target=_serve, args=(device, source, disk, counts), daemon=True)
    server.start()
    os.close(device)
    try:
        yield SlowFile(mount_point, counts)  # type: ignore[arg-type]
    finally:
        libc.umount2(bytes(mount_point), 2)  # MNT_DETACH: also where something has it open
        server.join(5)
        server.kill()


def _serve(device: int, source: Path, disk: Disk, counts: "Synchronized[int]") -> None:
    """Answer the kernel's requests until it has none any more."""
    os.nice(-10)  # a disk does not wait for a processor
    with open(source, "rb") as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    os.set_blocking(device, False)
    due: collections.deque[tuple[float, bytes, memoryview]] = collections.deque()
    free_at, end = 0.0, -1  # when and where the transfers so far have ended
    while True:
        wait = max(0.0, due[0][0] - time.monotonic()) if due else None
        asked, _, _ = select.select([device], [], [], wait)
        while due and due[0][0] <= time.monotonic():
            with contextlib.suppress(OSError):  # whoever asked is gone
                os.writev(device, due.popleft()[1:])
        if not asked:
            continue
        try:
            message = os.read(device, LARGEST + 4096)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ECONNABORTED):  # unmounted
                return
            if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                continue
            raise
        _, operation, unique, *_ = REQUEST.unpack_from(message)
        if operation == READ:
            _, offset, size = struct.unpack_from("<QQI", message, REQUEST.size)
            data = content[offset : offset + size]
            cost = len(data) / disk.rate + (disk.seek if offset != end else 0.0)
            free_at, end = max(time.monotonic() - LATE, free_at) + cost, offset + len(data)
            with counts.get_lock():
                counts[0] += len(data)  # type: ignore[index]
                counts[1] += 1  # type: ignore[index]
            due.append((free_at + disk.latency, _head(unique, 0, len(data)), data))
        elif operation not in UNANSWERED:
            error_number, body = _answer(operation, len(content))
            os.writev(device, [_head(unique, error_number, len(body)), body])


def _head(unique: int, error_number: int, length: int) -> bytes:
    return ANSWER.pack(ANSWER.size + length, -error_number, unique)


def _answer(operation: int, size: int) -> tuple[int, bytes]:
    """Error number and body for all that is not a read."""
    if operation == INIT:
        return 0, struct.pack(
            "<IIIIHHIIHHI28x", 7, 31, LARGEST, ASYNC_READ | MAX_PAGES, IN_FLIGHT, IN_FLIGHT,
            LARGEST, 1, LARGEST // 4096, 0, 0,
        )  # fmt: skip
    if operation == GETATTR:
        attributes = struct.pack(
            "<6Q10I", 1, size, -(-size // 512), 0, 0, 0,
            0, 0, 0, stat.S_IFREG | 0o444, 1, 0, 0, 0, 4096, 0,
        )  # fmt: skip
        return 0, struct.pack("<QII", 1 << 30, 0, 0) + attributes
    if operation == OPEN:
        return 0, struct.pack("<QII", 0, 2, 0)  # FOPEN_KEEP_CACHE
    if operation in (RELEASE, FLUSH):
        return 0, b""
    return errno.ENOSYS, b""
