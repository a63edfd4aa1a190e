"""ColOut (MosaicML's Composer, github.com/mosaicml/composer)."""

from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch

from ffcv_r50.data.compiled import CHECKSUM, njit_cached
from ffcv_r50.data.philox import below, philox4x32
from ffcv_r50.registry import Range
from ffcv_r50.training.protocols import Batch, Step, Transform
from ffcv_r50.training.transforms import TRANSFORMS, BatchOptions

Share = Annotated[float, Range(at_least=0, below=1)]


@TRANSFORMS.register("colout")
class ColOut(BatchOptions):
    """Rows and columns of each image are left out: Composer's ``ColOut``.

    The rest moves together, so the network sees smaller images. All lose equally many, each its own;
    Composer by itself leaves out the same ones of all images of a process's batch.
    """

    rows: Share = 0.15
    """Share of the rows that is left out, Composer's `p_row`; what stays is rounded down, as there."""
    columns: Share = 0.15
    """Of the columns, Composer's `p_col`."""

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        """At least one pixel."""
        return max(1, int((1 - self.rows) * height)), max(1, int((1 - self.columns) * width))

    def build(self, num_classes: int, stream: int) -> Transform:
        """See :class:`LeavingOut`."""
        return LeavingOut(self, stream)


class LeavingOut:
    """Keeps a random choice of rows and of columns, in their order.

    Which ones is a function of seed, step and position in the global batch.

    Args:
        options: see :class:`ColOut`.
        stream: of the random numbers.
    """

    def __init__(self, options: ColOut, stream: int) -> None:
        self._options = options
        self._stream = stream

    def __call__(self, batch: Batch, step: Step) -> Batch:
        """Smaller images, channels-last in memory."""
        size, device = batch.images.shape[2:], batch.images.device
        after = self._options.size_after(*size)
        rows, columns = (
            torch.from_numpy(
                draw_kept(
                    np.uint64(step.seed),
                    step.number,
                    self._stream + axis,
                    batch.positions,
                    size[axis],
                    after[axis],
                )
            ).to(device, non_blocking=True)
            for axis in (0, 1)
        )
        places = (rows[:, :, None] * size[1] + columns[:, None, :]).flatten(1)
        pixels = batch.images.permute(0, 2, 3, 1).flatten(1, 2)
        pixels = pixels.gather(1, places[..., None].expand(-1, -1, 3)).unflatten(1, after)
        return batch._replace(images=pixels.permute(0, 3, 1, 2))


def _build(checksum: int):  # type: ignore[no-untyped-def]
    @njit_cached
    def draw(seed, step, stream, first, count, kept):  # type: ignore[no-untyped-def]
        """Selection sampling (Knuth, The Art of Computer Programming 2, 3.4.2, algorithm S)."""
        if checksum < 0:
            return
        for i in range(len(kept)):
            chosen = 0
            for j in range(0, count, 4):
                four = philox4x32(first + i, j // 4, step, stream, seed)
                for k in range(j, min(j + 4, count)):
                    missing = kept.shape[1] - chosen
                    if below(four[k - j], count - k) < missing:
                        kept[i, chosen] = k
                        chosen += 1

    return draw


_draw = _build(CHECKSUM)


def draw_kept(
    seed: np.uint64, step: int, stream: int, positions: range, count: int, kept: int
) -> npt.NDArray[np.int64]:
    """Which of the rows, or of the columns, each image keeps: any choice is as likely as any other.

    Args:
        seed: of the run.
        step: counted from the run's start.
        stream: of the random numbers.
        positions: of the samples in the global batch.
        count: rows that there are.
        kept: rows that stay, at most as many.

    Returns:
        int64 [n, kept], from 0 on and increasing.
    """
    found = np.empty((len(positions), kept), np.int64)
    _draw(seed, step, stream, positions.start, count, found)
    return found
