"""Operations on a pixel's neighbourhood."""

import math
from typing import Any

import numpy as np

from ffcv_r50.data.compiled import njit
from ffcv_r50.data.pixels.tone import blended


@njit
def sharpness(image: Any, factor: float, source: Any) -> None:
    """Blend with the smoothed image; 1 changes nothing: Pillow's, to the bit.

    Smoothed is the mean of 3 x 3 pixels, that in the middle counted five times. The pixels at the
    borders stay.

    Args:
        image: uint8 [height, width, 3], changed.
        factor: below 1 smooths, above 1 sharpens.
        source: uint8 of the image's size, scratch.
    """
    share, part, half = np.float32(factor), np.float32(1.0 / 13.0), np.float32(0.5)
    height, width, _ = image.shape
    pitch, inside = 3 * width, max(0, 3 * width - 6)
    values = image.reshape(image.size)
    for i in range(values.size):
        source[i] = values[i]
    sums = np.empty(pitch, np.float32)  # of three rows
    # Views that begin where they are read, so that the loops over them become vectors.
    left, middle, right = sums[:inside], sums[3 : 3 + inside], sums[6 : 6 + inside]
    for y in range(1, height - 1):
        at = y * pitch
        above, row, below = (
            source[at - pitch : at],
            source[at : at + pitch],
            source[at + pitch : at + 2 * pitch],
        )
        for i in range(pitch):
            sums[i] = np.float32(above[i]) + np.float32(row[i]) + np.float32(below[i])
        center, out = row[3 : 3 + inside], values[at + 3 : at + 3 + inside]
        for i in range(inside):
            total = left[i] + middle[i] + right[i] + np.float32(4) * np.float32(center[i])
            out[i] = blended(np.int32(total * part + half), center[i], share)


@njit
def _mirrored(i: int, size: int) -> int:
    """The index of what a mirror on the first and the last element shows."""
    period = max(1, 2 * size - 2)
    i = abs(i) % period
    return min(i, period - i) if size > 1 else 0


@njit
def blur(image: Any, sigma: float, source: Any) -> None:
    """Gaussian blur: torchvision's with a kernel of ``2 * ceil(3 * sigma) + 1``, within 1 of 255.

    The image is mirrored at its borders. Rows come first, as floats in a line that stays in the cache.

    Args:
        image: uint8 [height, width, 3], changed.
        sigma: standard deviation in pixels, above 0.
        source: uint8 of the image's size, scratch.
    """
    height, width, _ = image.shape
    pitch = 3 * width
    radius = int(math.ceil(3.0 * sigma))
    weights = np.empty(2 * radius + 1, np.float32)
    total = 0.0
    for k in range(-radius, radius + 1):
        total += math.exp(-0.5 * (k / sigma) ** 2)
    for k in range(-radius, radius + 1):
        weights[k + radius] = math.exp(-0.5 * (k / sigma) ** 2) / total
    values = image.reshape(image.size)
    for i in range(values.size):
        source[i] = values[i]
    line = np.empty(pitch + 6 * radius, np.float32)
    sums = np.empty(pitch, np.float32)
    middle = line[3 * radius : 3 * radius + pitch]
    for y in range(height):
        middle[:] = 0
        for k in range(-radius, radius + 1):
            begin = _mirrored(y + k, height) * pitch
            row, weight = source[begin : begin + pitch], weights[k + radius]
            for i in range(pitch):
                middle[i] += weight * np.float32(row[i])
        for x in range(radius):
            left, right = _mirrored(-1 - x, width), _mirrored(width + x, width)
            for c in range(3):
                line[3 * (radius - 1 - x) + c] = middle[3 * left + c]
                line[3 * (radius + width + x) + c] = middle[3 * right + c]
        sums[:] = np.float32(0.5)  # rounds where the conversion cuts off
        for k in range(2 * radius + 1):
            shifted, weight = line[3 * k : 3 * k + pitch], weights[k]
            for i in range(pitch):
                sums[i] += weight * shifted[i]
        out = values[y * pitch : (y + 1) * pitch]
        for i in range(pitch):
            out[i] = np.uint8(min(sums[i], np.float32(255)))
