"""Which samples form which batch of an epoch: a function of the seed and the epoch.

``random`` is a permutation of the dataset. ``quasi_random`` is for datasets larger than memory, see
:func:`quasi_random`. World size and workers have no part in either: ranks cut them, see
:mod:`ffcv_r50.data.loader`.
"""

import numpy as np
import numpy.typing as npt

from ffcv_r50.data.compiled import SOURCES, entry_point
from ffcv_r50.data.philox import ORDER_STREAM, philox4x32

Indices = npt.NDArray[np.int64]

_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def _build(sources: int):  # type: ignore[no-untyped-def]
    @entry_point
    def shuffle(items, seed, epoch, stream, part):  # type: ignore[no-untyped-def]
        """Fisher-Yates in place; 64 random bits a swap keep the bias under n / 2**64."""
        if sources < 0:
            return
        for i in range(items.size - 1, 0, -1):
            r0, r1, _, _ = philox4x32(i, part, epoch, stream, seed)
            n = np.uint64(i + 1)
            j = np.int64((r0 * n + ((r1 * n) >> _32)) >> _32)
            items[i], items[j] = items[j], items[i]

    return shuffle


_shuffle = _build(SOURCES)


def random(num_samples: int, seed: int, epoch: int) -> Indices:
    """A uniformly random permutation of the samples.

    Args:
        num_samples: samples in the dataset, fewer than 2**32.
        seed: up to 64 bits.
        epoch: from 0.

    Returns:
        [num_samples] sample indices.
    """
    order = np.arange(num_samples)
    _shuffle(order, np.uint64(seed), epoch, ORDER_STREAM, 0)
    return order
