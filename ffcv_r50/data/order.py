"""Which samples form which batch of an epoch: a function of the seed and the epoch.

``random`` is a permutation of the dataset. ``quasi_random`` is for datasets larger than memory, see
:class:`PageOrder`. World size, micro-batches and workers have no part in either: ranks cut them, see
:mod:`ffcv_r50.data.loader`.
"""

import numpy as np
import numpy.typing as npt

from ffcv_r50.data.compiled import CHECKSUM, njit_cached
from ffcv_r50.data.philox import ORDER_STREAM, PAGES_STREAM, POOLS_STREAM, philox4x32

Indices = npt.NDArray[np.int64]

POOL_PAGES = 512
"""Pages among whose samples :class:`PageOrder` shuffles at a time."""

MAX_LANES = 64
"""Of a :class:`PageOrder`: as many ranks as read no page of another's."""

_32 = np.uint64(32)


def _build(checksum: int):  # type: ignore[no-untyped-def]
    @njit_cached
    def shuffle(items, seed, epoch, stream, part):  # type: ignore[no-untyped-def]
        """Fisher-Yates in place; 64 random bits a swap keep the bias under n / 2**64."""
        if checksum < 0:
            return
        for i in range(items.size - 1, 0, -1):
            r0, r1, _, _ = philox4x32(i, part, epoch, stream, seed)
            n = np.uint64(i + 1)
            j = np.int64((r0 * n + ((r1 * n) >> _32)) >> _32)
            items[i], items[j] = items[j], items[i]

    return shuffle


_shuffle = _build(CHECKSUM)


def random_order(num_samples: int, seed: int, epoch: int) -> Indices:
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


def repeated(samples: Indices, repeats: int, batch_size: int, steps: int) -> Indices:
    """Repeated augmentation (Hoffer et al. 2020, arXiv:1901.09335): several views of a sample a step.

    An epoch has as many views as without; so it shows fewer samples. The views of a sample lie as far
    from each other in the batch as they can, hence in different batches of batch-norm where there
    are that many.

    Args:
        samples: [n] sample indices in the order of an epoch, at least ``steps * batch_size``.
        repeats: views of each sample. Where it does not divide the batch, a step has as many
            samples as if it did, with a view less of some.
        batch_size: views of a step.
        steps: in the epoch.

    Returns:
        [steps * batch_size] views: the sample in the low 32 bits, the number of the repetition above.
    """
    each = -(-batch_size // repeats)
    shown = samples[: steps * each].reshape(steps, 1, each)
    views = shown + (np.arange(repeats)[:, None] << 32)
    return np.ascontiguousarray(views.reshape(steps, -1)[:, :batch_size]).reshape(-1)


class PageOrder:
    """A shuffled order for a dataset larger than memory, which visits its pages one after another.

    A step's samples come from lanes, equally many from each: as many lanes as divide the batch, up to
    :data:`MAX_LANES`. The pages of the file are shuffled and dealt out to the lanes, a run of pages
    each. A lane shuffles the samples of a few of its pages at a time, its pool, and takes its share of
    the steps from there. Ranks take neighbouring lanes, so a rank reads only the pages of its own;
    each page is wanted during one pool of one lane, and read about once an epoch, at any world size
    that divides the number of lanes. All lanes' pools together hold :data:`POOL_PAGES` pages (4 GiB
    at FFCV's default of 8 MiB), on a single machine or spread over many.

    Unlike ``random``, a step sees only the samples of so many pages: where the file is sorted by
    class, as FFCV's and our own writer leave it, only the classes on those.

    Args:
        offsets: [num_samples] where each sample lies in the file, in bytes.
        page_size: in bytes.
    """

    def __init__(self, offsets: npt.NDArray[np.int64], page_size: int) -> None:
        self._by_place = np.argsort(offsets, kind="stable")
        pages = (offsets[self._by_place] - offsets.min()) // page_size
        self._starts = np.flatnonzero(np.diff(pages, prepend=-1))
        self._counts = np.diff(self._starts, append=len(offsets))

    def order(self, seed: int, epoch: int, batch_size: int) -> Indices:
        """The order of an epoch.

        Args:
            seed: up to 64 bits.
            epoch: from 0.
            batch_size: samples of a step, at most as many as the dataset has.

        Returns:
            [steps * batch_size] sample indices; the samples of the last pages that fill no step are
            left out.
        """
        key = np.uint64(seed)
        pages = np.arange(len(self._starts))
        _shuffle(pages, key, epoch, PAGES_STREAM, 0)
        counts = self._counts[pages]
        ends = np.cumsum(counts)
        places = np.arange(ends[-1]) + np.repeat(self._starts[pages] - (ends - counts), counts)
        num_lanes = max(n for n in range(1, MAX_LANES + 1) if batch_size % n == 0)
        lane_size = batch_size // num_lanes
        steps = len(places) // batch_size
        lanes = self._by_place[places[: steps * batch_size]].reshape(num_lanes, -1)
        pool = max(1, POOL_PAGES // num_lanes) * int(self._counts.mean())
        pool = max(pool, lane_size)
        for i in range(num_lanes):
            for j in range(0, lanes.shape[1], pool):
                _shuffle(lanes[i, j : j + pool], key, epoch, POOLS_STREAM + i, j)
        by_step = lanes.reshape(num_lanes, steps, lane_size).swapaxes(0, 1)
        return np.ascontiguousarray(by_step).reshape(-1)
