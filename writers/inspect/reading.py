"""All samples of a dataset, read in the order they lie in, by as many threads as there are cores."""

import contextlib
import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ffcv_r50.data import jpeg
from ffcv_r50.data.beton import MODE_RAW, Beton
from ffcv_r50.data.decode import MAX_PIXELS, read_header
from writers import progress

T = TypeVar("T")

CHUNK = 16
"""Samples that a thread is given at a time."""
TJPF_RGB = 0

_local = threading.local()


class Damaged(Exception):
    """An image that cannot be decoded; the message says why."""


def each(dataset: Beton, function: Callable[[int, bytes], T]) -> Iterator[tuple[int, T]]:
    """Sample and ``function(sample, its bytes)`` of each, with the progress shown."""
    order = np.argsort(dataset.offsets, kind="stable")

    def work(begin: int) -> list[tuple[int, T]]:
        return [(int(i), function(int(i), dataset.read(i))) for i in order[begin : begin + CHUNK]]

    threads = len(os.sched_getaffinity(0))
    pending: deque[Future[list[tuple[int, T]]]] = deque()
    begins = iter(range(0, dataset.num_samples, CHUNK))
    with ThreadPoolExecutor(threads) as executor, progress.shown(dataset.num_samples) as report:
        with contextlib.suppress(StopIteration):
            for _ in range(3 * threads):
                pending.append(executor.submit(work, next(begins)))
        done = size = 0
        while pending:
            for sample, result in pending.popleft().result():
                done += 1
                size += int(dataset.sizes[sample])
                report(done, size)
                yield sample, result
            with contextlib.suppress(StopIteration):
                pending.append(executor.submit(work, next(begins)))


def decode(dataset: Beton, sample: int, data: bytes) -> npt.NDArray[np.uint8]:
    """The pixels of a sample, as strictly as the loader takes it: a warning is an error.

    Returns:
        uint8 [height, width, 3].

    Raises:
        Damaged: they cannot be decoded.
    """
    height, width = int(dataset.heights[sample]), int(dataset.widths[sample])
    if dataset.modes[sample] == MODE_RAW:
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)
    status, _ = read_header(np.frombuffer(data, np.uint8), (height, width))
    if status == jpeg.GOOD and height * width > MAX_PIXELS:
        status = jpeg.TOO_LARGE
    if status != jpeg.GOOD:
        raise Damaged(jpeg.REASONS[status])
    if not hasattr(_local, "decompressor"):
        _local.decompressor = jpeg.Decompressor()
    pixels = np.empty((height, width, 3), np.uint8)
    failed = jpeg.library().tjDecompress2(
        ctypes.c_void_p(_local.decompressor.handle),
        data,
        ctypes.c_ulong(len(data)),
        pixels.ctypes.data_as(ctypes.c_void_p),
        *(width, 3 * width, height, TJPF_RGB, jpeg.TJFLAG_ACCURATEDCT),
    )
    if failed:
        raise Damaged(_local.decompressor.error())
    return pixels
