"""Asking the disk for the bytes of the next batches before they are decoded.

The order of an epoch is known, so a thread tells the kernel which bytes come next
(``posix_fadvise``), and the decoding finds them in the page cache. It is advice: nothing is read
into this process, errors are the decoding's to report, and where a file system ignores it the
decoding waits for the disk as it would without. What it gains: docs/cold_disks.md.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Sequence
from mmap import PAGESIZE
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba.core import types

from ffcv_r50.data.compiled import CHECKSUM, njit_cached
from ffcv_r50.data.decode import Sampling, Stored, draw_window, span

LOG = logging.getLogger(__name__)

WINDOW = 1 << 25
"""Bytes that are asked for before the decoding of their batch begins, at most; or one batch, if that
is more."""
PIECE = 1 << 17
"""Bytes of the pages asked for in one call. Linux leaves out what goes beyond its own read-ahead, which
is 128 KiB unless set otherwise."""

_fadvise: Any = types.ExternalFunction(
    "posix_fadvise", types.int32(types.int32, types.int64, types.int64, types.int32)
)
_WILLNEED = 3


class Ranges(NamedTuple):
    """Parts of a file, ascending; they neither overlap nor touch."""

    begins: npt.NDArray[np.int64]
    """[n] in bytes."""
    ends: npt.NDArray[np.int64]
    """[n] in bytes, exclusive."""

    @property
    def size(self) -> int:
        """Bytes in all of them."""
        return int((self.ends - self.begins).sum())


def _build(checksum: int):  # type: ignore[no-untyped-def]
    @njit_cached
    def spans(stored, sampling, views):  # type: ignore[no-untyped-def]
        begins = np.empty(views.size + 0 * checksum, np.int64)
        ends = np.empty(views.size, np.int64)
        for i in range(views.size):
            sample = views[i] & 0xFFFFFFFF
            size = np.int64(stored.heights[sample]), np.int64(stored.widths[sample])
            window, _ = draw_window(sampling, views[i], size)
            first, count = span(stored, sample, window)
            begins[i] = stored.offsets[sample] + first
            ends[i] = begins[i] + count
        return begins, ends

    @njit_cached
    def advise(file, begins, ends, stopped):  # type: ignore[no-untyped-def]
        for i in range(begins.size + 0 * checksum):
            begin = begins[i]
            while begin < ends[i] and not stopped[0]:
                end = min(ends[i], begin // PAGESIZE * PAGESIZE + PIECE)
                _fadvise(file, begin, end - begin, _WILLNEED)
                begin = end

    return spans, advise


_spans, _advise = _build(CHECKSUM)


def ranges(stored: Stored, sampling: Sampling, views: npt.NDArray[np.int64]) -> Ranges:
    """What decoding reads of a file, to the byte.

    Args:
        stored: the dataset.
        sampling: which rows of a raw sample are needed.
        views: [n], n at least 1, see :func:`ffcv_r50.data.decode.decode_samples`.
    """
    begins, ends = _spans(stored, sampling, views)
    order = np.argsort(begins)
    begins, reach = begins[order], np.maximum.accumulate(ends[order])
    apart = begins[1:] > reach[:-1]
    return Ranges(begins[np.append(True, apart)], reach[np.append(apart, True)])


def advise(file: int, wanted: Ranges, stopped: npt.NDArray[np.bool_]) -> None:
    """Tell the kernel that parts of a file will be needed, without the GIL.

    Returns when all requests are made, which takes as long as the disk's queue is full.

    Args:
        file: descriptor.
        wanted: the parts.
        stopped: [1], set by another thread to have this return after the call it is at.
    """
    _advise(file, wanted.begins, wanted.ends, stopped)


class ReadAhead(threading.Thread):
    """Asks for the bytes of an epoch's batches, at most :data:`WINDOW` of them ahead of the decoding.

    Args:
        stored: the dataset.
        sampling: what is done to its samples.
        batches: of views, in the order in which they are decoded.
    """

    def __init__(
        self, stored: Stored, sampling: Sampling, batches: Sequence[npt.NDArray[np.int64]]
    ) -> None:
        super().__init__(name="read-ahead", daemon=True)
        self._stored = stored
        self._sampling = sampling
        self._batches = batches
        self._changed = threading.Condition()
        self._begun = 0
        self._stopped = np.zeros(1, np.bool_)

    def begin(self, batches: int) -> None:
        """So many batches are decoded, or are being decoded."""
        with self._changed:
            self._begun = batches
            self._changed.notify()

    def stop(self) -> None:
        """Have the thread end after the call it is at."""
        with self._changed:
            self._stopped[0] = True
            self._changed.notify()

    def run(self) -> None:
        """The thread's life."""
        try:
            # Opened again, since the kernel keeps a state of reading ahead with each open file: by
            # what others read with the decoding's, FUSE drops requests while many are under way.
            file = os.open(f"/proc/self/fd/{self._stored.file}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            LOG.warning("the dataset is not read ahead (%s): batches wait for the disk", error)
            return
        try:
            asked: deque[tuple[int, int]] = (
                deque()
            )  # number and bytes of batches that may not be begun
            for number, views in enumerate(self._batches):
                wanted = ranges(self._stored, self._sampling, views)
                if self._wait(asked, wanted.size):
                    return
                if number >= self._begun - 1:  # or the decoding is beyond it
                    asked.append((number, wanted.size))
                    advise(file, wanted, self._stopped)
        finally:
            os.close(file)

    def _wait(self, asked: deque[tuple[int, int]], size: int) -> bool:
        """Wait until a batch fits into the window; return whether it is too late."""
        with self._changed:
            while not self._stopped[0]:
                while asked and asked[0][0] < self._begun:
                    asked.popleft()
                if not asked or sum(n for _, n in asked) + size <= WINDOW:
                    return False
                self._changed.wait()
            return True
