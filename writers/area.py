"""Shrinking by exact area averaging."""

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


@njit_cached
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
    source = pixels.reshape(rows, columns * 3)
    result = np.empty((height, width, 3), np.uint8)
    sums = np.empty(columns * 3, np.int64)
    scale = 1.0 / (rows * columns)
    for y in range(height):
        sums[:] = 0
        top, bottom = y * rows, (y + 1) * rows
        for row in range(top // height, (bottom + height - 1) // height):
            overlap = min(bottom, (row + 1) * height) - max(top, row * height)
            for i in range(columns * 3):
                sums[i] += overlap * source[row, i]
        for x in range(width):
            left, right = x * columns, (x + 1) * columns
            red = green = blue = 0
            for column in range(left // width, (right + width - 1) // width):
                overlap = min(right, (column + 1) * width) - max(left, column * width)
                red += overlap * sums[3 * column]
                green += overlap * sums[3 * column + 1]
                blue += overlap * sums[3 * column + 2]
            result[y, x, 0] = int(red * scale + 0.5)
            result[y, x, 1] = int(green * scale + 0.5)
            result[y, x, 2] = int(blue * scale + 0.5)
    return result
