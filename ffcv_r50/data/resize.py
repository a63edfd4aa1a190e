"""Resizing with an anti-aliased triangle filter, the flip folded into its weights.

The filter is Pillow's BILINEAR (and torchvision's with antialias): the triangle is as wide as the
step between output pixels where the image shrinks. Rows come first, each a weighted sum of a few
contiguous rows, then columns; the intermediate is a single row, which stays in the first-level cache.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ffcv_r50.data.compiled import inlined

Weights = npt.NDArray[np.float32]


@inlined
def triangle_weights(
    start: float, stop: float, size: int, count: int, firsts: Any, taps: Any, weights: Weights
) -> None:
    """Where each of ``count`` output pixels looks and with which weights, as Pillow computes it.

    Args:
        start, stop: the window in source pixels; fractions allowed.
        size: number of source pixels; the window's pixels from floor(start) to ceil(stop) are used.
        count: output pixels.
        firsts: int64 [count], filled with the first source pixel of each.
        taps: int64 [count], filled with the number of source pixels of each.
        weights: [count * (longest + 1)] at stride :func:`longest`, filled; each row sums to one.
    """
    low = max(0, int(math.floor(start)))
    high = min(size, int(math.ceil(stop)))
    step = (stop - start) / count
    support = max(1.0, step)
    stride = longest(start, stop, count)
    for i in range(count):
        center = start + (i + 0.5) * step
        first = max(low, int(math.floor(center - support + 0.5)))
        last = min(high, int(math.floor(center + support + 0.5)))
        total = 0.0
        for k in range(last - first):
            w = max(0.0, 1.0 - abs((first + k + 0.5 - center) / support))
            weights[i * stride + k] = w
            total += w
        for k in range(last - first):
            weights[i * stride + k] /= total
        firsts[i] = first
        taps[i] = last - first


@inlined
def longest(start: float, stop: float, count: int) -> int:
    """The most source pixels that an output pixel looks at."""
    return 2 * int(math.ceil(max(1.0, (stop - start) / count))) + 1


@inlined
def resize(
    source: Any,
    pitch: int,
    channels: int,
    rows: int,
    columns: int,
    top: float,
    left: float,
    height: float,
    width: float,
    flip: bool,
    out: Any,
    scratch: Any,
) -> None:
    """Resize a window of an image to the size of ``out``.

    Args:
        source: uint8, flat, RGB first in each pixel.
        pitch: bytes from row to row.
        channels: bytes from pixel to pixel, 3 or 4.
        rows, columns: the image's size in pixels.
        top, left, height, width: the window in pixels; fractions allowed.
        flip: mirror left to right.
        out: uint8 [height, width, 3], filled.
        scratch: the worker's :class:`Scratch` arrays (firsts_y, taps_y, weights_y, firsts_x, taps_x,
            weights_x, line).
    """
    firsts_y, taps_y, weights_y, firsts_x, taps_x, weights_x, line = scratch
    out_rows, out_columns = out.shape[0], out.shape[1]
    triangle_weights(top, top + height, rows, out_rows, firsts_y, taps_y, weights_y)
    triangle_weights(left, left + width, columns, out_columns, firsts_x, taps_x, weights_x)
    stride_y = longest(top, top + height, out_rows)
    stride_x = longest(left, left + width, out_columns)
    x_low = firsts_x[0]
    x_high = firsts_x[out_columns - 1] + taps_x[out_columns - 1]
    n = (x_high - x_low) * channels
    begin = x_low * channels
    half = np.float32(0.5)
    for y in range(out_rows):
        base = firsts_y[y] * pitch + begin
        w = weights_y[y * stride_y]
        row = source[base : base + n]
        for i in range(n):
            line[i] = w * np.float32(row[i])
        for k in range(1, taps_y[y]):
            w = weights_y[y * stride_y + k]
            row = source[base + k * pitch : base + k * pitch + n]
            for i in range(n):
                line[i] += w * np.float32(row[i])
        for x in range(out_columns):
            at = (firsts_x[x] - x_low) * channels
            r = g = b = np.float32(0.0)
            for k in range(taps_x[x]):
                w = weights_x[x * stride_x + k]
                r += w * line[at]
                g += w * line[at + 1]
                b += w * line[at + 2]
                at += channels
            to = out_columns - 1 - x if flip else x
            out[y, to, 0] = np.uint8(r + half)
            out[y, to, 1] = np.uint8(g + half)
            out[y, to, 2] = np.uint8(b + half)
