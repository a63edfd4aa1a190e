"""Shrinking by exact area averaging."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ffcv_r50.data.compiled import njit_cached


def limited_size(height: int, width: int, longest_side: int) -> tuple[int, int]:
    """The size an image is stored at, with the arithmetic of FFCV's ``RGBImageField``.

    Args:
        height: pixels.
        width: pixels.
        longest_side: pixels that neither side may exceed; 0 for no limit.

    Returns:
        Height and width: unchanged where they are within the limit, otherwise both times
        ``longest_side / max(height, width)``, rounded down but never to zero (FFCV fails there).
    """
    if longest_side == 0 or max(height, width) <= longest_side:
        return height, width
    ratio = longest_side / max(height, width)
    return max(1, int(ratio * height)), max(1, int(ratio * width))


def shrink(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Average the source pixels under each output pixel, weighted by the area they share with it.

    This is OpenCV's ``INTER_AREA``, which FFCV stores images with, up to the rounding of the mean.
    (Pillow's BOX filter is not: it takes source pixels wholly or not at all.) One unit of length is
    ``1 / height`` of a source row, so that all overlaps are integers and the sums exact: the
    result is the same on every machine.

    Args:
        pixels: uint8 [rows, columns, 3], C-contiguous.
        height: rows of the result, 1 to ``rows``.
        width: columns of the result, 1 to ``columns``.

    Returns:
        uint8 [height, width, 3].
    """
    rows, columns = pixels.shape[:2]
    # A column's sum is at most 255 * rows. Processors add twice as many numbers of 32 bits at a time.
    kind = np.int32 if 255 * rows < 1 << 31 else np.int64
    return _shrink(pixels, height, width, np.empty((columns + 1) * 3, kind))


@njit_cached
def _shrink(
    pixels: npt.NDArray[np.uint8], height: int, width: int, sums: npt.NDArray[Any]
) -> npt.NDArray[np.uint8]:
    """:func:`shrink`, with room for what lies under a row of the result: three sums of each column, and
    of one behind the last.
    """
    rows, columns = pixels.shape[:2]
    source = pixels.reshape(rows, columns * 3)
    result = np.empty((height, width, 3), np.uint8)
    # Where each output pixel ends: behind so many whole columns (times 3), and a part of the next.
    edges = np.arange(1, width + 1) * columns
    whole = (edges // width * 3).astype(np.uint64)
    parts = edges % width
    scale = 1.0 / (rows * columns)
    for y in range(height):
        sums[:] = 0
        top, bottom = y * rows, (y + 1) * rows
        for row in range(top // height, (bottom + height - 1) // height):
            overlap = min(bottom, (row + 1) * height) - max(top, row * height)
            for i in range(columns * 3):
                sums[i] += overlap * source[row, i]
        # Each pixel's sum is the one from the left rim to its end less the one to its begin. (Unsigned
        # positions are not negative, which saves looking whether they count from the end.)
        at = np.uint64(0)
        red = green = blue = 0  # of whole columns
        red_before = green_before = blue_before = 0
        for x in range(width):
            while at < whole[x]:
                red += sums[at]
                green += sums[at + np.uint64(1)]
                blue += sums[at + np.uint64(2)]
                at += np.uint64(3)
            red_here = red * width + parts[x] * sums[at]
            green_here = green * width + parts[x] * sums[at + np.uint64(1)]
            blue_here = blue * width + parts[x] * sums[at + np.uint64(2)]
            result[y, x, 0] = int((red_here - red_before) * scale + 0.5)
            result[y, x, 1] = int((green_here - green_before) * scale + 0.5)
            result[y, x, 2] = int((blue_here - blue_before) * scale + 0.5)
            red_before, green_before, blue_before = red_here, green_here, blue_here
    return result
