"""A number that tells whether two steps saw the same data.

It follows from which sample, in which window, mirrored or not, with which label stands at which place
of the global batch: what the order and the crops decide, before a pixel is decoded. So every process
could compute it alone, and the number of processes, micro-batches and threads has no part in it.
"""

import numpy as np
import numpy.typing as npt

from ffcv_r50.data.compiled import CHECKSUM, njit_cached
from ffcv_r50.data.decode import Sampling, Stored, draw_window
from ffcv_r50.data.philox import philox4x32

_32 = np.uint64(32)


def _build(checksum: int):  # type: ignore[no-untyped-def]
    @njit_cached
    def add_up(stored, sampling, views, labels):  # type: ignore[no-untyped-def]
        total = np.uint64(0 * checksum)
        for i in range(views.size):
            sample = views[i] & 0xFFFFFFFF
            size = np.int64(stored.heights[sample]), np.int64(stored.widths[sample])
            window, flip = draw_window(sampling, views[i], size)
            r0, r1, _, _ = philox4x32(
                sample,
                2 * (views[i] >> 32) + flip,
                (window.top << 16) + window.left,
                (window.height << 16) + window.width,
                (np.uint64(labels[sample]) << _32) | np.uint64(i),
            )
            total += (r0 << _32) | r1
        return total

    return add_up


_add_up = _build(CHECKSUM)


def fingerprint(
    stored: Stored, sampling: Sampling, views: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]
) -> str:
    """Of one global batch, 0.15 microseconds an image on one core.

    Args:
        stored: the dataset.
        sampling: seed, epoch, crop and flip.
        views: [n], in the order of the global batch: the sample's index in the low 32 bits, which
            repetition of it above.
        labels: of all samples of the dataset.

    Returns:
        16 hexadecimal digits: the sum modulo 2^64 of Philox4x32-10 of each sample, its window, label
        and position.
    """
    return f"{int(_add_up(stored, sampling, views, labels)):016x}"
