"""Resizing with an anti-aliased triangle filter, the flip folded into its order of columns.

The filter is Pillow's BILINEAR (and torchvision's with antialias): the triangle is as wide as the
step between output pixels where the image shrinks. Rows come first, each a weighted sum of a few
contiguous rows; the sum is a single line of floats, which stays in the first-level cache. Columns
come next, each a sum over a few neighbours in that line, the channels of a pixel side by side in one
vector. Within 1 of 255 of Pillow, which rounds between the two.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ffcv_r50.data.compiled import njit

MAX_UNROLLED = 8
"""Taps up to which a pixel's sum over columns is unrolled."""


class Bitmap(NamedTuple):
    """Pixels of which red, green and blue come first, row after row without gaps."""

    data: Any
    """uint8, flat."""
    height: int
    width: int
    channels: int
    """Bytes of a pixel, 3 or 4."""


class Box(NamedTuple):
    """A part of an image in pixels, fractions allowed."""

    top: float
    left: float
    height: float
    width: float


class Taps(NamedTuple):
    """Which pixels of a line each output pixel sums up, and with which weights."""

    firsts: Any
    """int64 [count], source columns."""
    origin: int
    """The source column at which the line begins."""
    weights: Any
    """float32 [count * stride], see :func:`triangle_weights`."""
    stride: int
    most: int
    """Taps of the output pixel that has the most."""
    channels: int
    """Floats of a pixel in the line."""


@njit
def max_taps(span: float, count: int) -> int:
    """The most source pixels that an output pixel looks at, where ``count`` of them cover ``span``."""
    return 2 * int(math.ceil(max(1.0, span / count))) + 1


@njit
def triangle_weights(
    start: float, span: float, size: int, firsts: Any, taps: Any, weights: Any
) -> int:
    """Where each output pixel looks and with which weights, as Pillow computes it.

    Args:
        start, span: the window in source pixels, of which whole pixels that it touches are used.
        size: number of source pixels.
        firsts: int64 [count], filled with the first source pixel of each output pixel.
        taps: int64 [count], filled with the number of source pixels of each.
        weights: float32 [count * max_taps(span, count)], filled; each row sums to one and ends in
            zeros.

    Returns:
        The most taps.
    """
    count = firsts.size
    low = max(0, int(math.floor(start)))
    high = min(size, int(math.ceil(start + span)))
    step = span / count
    support = max(1.0, step)
    stride = max_taps(span, count)
    most = 0
    for i in range(count):
        center = start + (i + 0.5) * step
        first = max(low, int(math.floor(center - support + 0.5)))
        last = min(high, int(math.floor(center + support + 0.5)))
        row = weights[i * stride : (i + 1) * stride]
        total = 0.0
        for k in range(stride):
            distance = abs(first + k + 0.5 - center) / support
            w = max(0.0, 1.0 - distance) if first + k < last else 0.0
            row[k] = w
            total += w
        for k in range(stride):
            row[k] /= total
        firsts[i] = first
        taps[i] = last - first
        most = max(most, last - first)
    return most


@njit
def _sum_rows(
    source: Any, base: int, pitch: int, n: int, weights: Any, taps: int, line: Any
) -> None:
    """Set the first ``n`` of ``line`` to a weighted sum of ``taps`` rows, four in one pass."""
    row0 = source[base : base + n]
    w0 = weights[0]
    if taps == 1:
        for i in range(n):
            line[i] = w0 * np.float32(row0[i])
        return
    row1 = source[base + pitch : base + pitch + n]
    w1 = weights[1]
    if taps == 2:
        for i in range(n):
            line[i] = w0 * np.float32(row0[i]) + w1 * np.float32(row1[i])
        return
    row2 = source[base + 2 * pitch : base + 2 * pitch + n]
    w2 = weights[2]
    if taps == 3:
        for i in range(n):
            line[i] = w0 * np.float32(row0[i]) + w1 * np.float32(row1[i]) + w2 * np.float32(row2[i])
        return
    row3 = source[base + 3 * pitch : base + 3 * pitch + n]
    w3 = weights[3]
    for i in range(n):
        line[i] = (w0 * np.float32(row0[i]) + w1 * np.float32(row1[i])) + (
            w2 * np.float32(row2[i]) + w3 * np.float32(row3[i])
        )
    for k in range(4, taps):
        w = weights[k]
        row = source[base + k * pitch : base + k * pitch + n]
        for i in range(n):
            line[i] += w * np.float32(row[i])


def _pixel(unrolled: int) -> Callable[..., None]:
    """A compiled function that makes one output pixel from a line.

    LLVM does not find the vector of channels by itself, so it is spelled out: this halves the time
    of a resize. ``unrolled`` is the number of taps, or 0 for any number.
    """

    @intrinsic  # type: ignore[untyped-decorator,unused-ignore]
    def pixel(_, line, step, weights, taps, out):  # type: ignore[no-untyped-def] # pragma: no cover
        i8, i16, i32, i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
        f32 = ir.FloatType()
        vector = ir.VectorType(f32, 4)
        nothing = ir.Constant(vector, ir.Undefined)
        first_lane = ir.Constant(ir.VectorType(i32, 4), [0] * 4)
        half = ir.Constant(vector, [0.5] * 4)  # rounds where the conversion cuts off

        def generate(context, builder, _, args):  # type: ignore[no-untyped-def]
            line, step, weights, taps, out = args

            def load(kind, address):  # type: ignore[no-untyped-def]
                value = builder.load(builder.inttoptr(address, kind.as_pointer()))
                value.align = 4
                return value

            def add(total, k):  # type: ignore[no-untyped-def]
                four = load(vector, builder.add(line, builder.mul(step, k)))
                weight = load(f32, builder.add(weights, builder.mul(ir.Constant(i64, 4), k)))
                weight = builder.insert_element(nothing, weight, ir.Constant(i32, 0))
                weight = builder.shuffle_vector(weight, nothing, first_lane)
                product = builder.fmul(four, weight, flags=("contract",))
                return builder.fadd(total, product, flags=("contract",))

            if unrolled:
                total = half
                for k in range(unrolled):
                    total = add(total, ir.Constant(i64, k))
            else:
                before = builder.block
                loop = builder.append_basic_block("taps")
                after = builder.append_basic_block("sum")
                builder.branch(loop)
                builder.position_at_end(loop)
                k, partial = builder.phi(i64), builder.phi(vector)
                total = add(partial, k)
                following = builder.add(k, ir.Constant(i64, 1))
                k.add_incoming(ir.Constant(i64, 0), before)
                k.add_incoming(following, loop)
                partial.add_incoming(half, before)
                partial.add_incoming(total, loop)
                builder.cbranch(builder.icmp_signed("<", following, taps), loop, after)
                builder.position_at_end(after)

            whole = builder.fptosi(total, ir.VectorType(i32, 4))
            rgbx = builder.bitcast(builder.trunc(whole, ir.VectorType(i8, 4)), i32)
            # Two stores of three bytes: a fourth would belong to another pixel, row, even thread.
            at = builder.inttoptr(out, i16.as_pointer())
            builder.store(builder.trunc(rgbx, i16), at).align = 1
            at = builder.inttoptr(builder.add(out, ir.Constant(i64, 2)), i8.as_pointer())
            builder.store(builder.trunc(builder.lshr(rgbx, ir.Constant(i32, 16)), i8), at)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 5), generate

    return pixel


def _columns(unrolled: int) -> Callable[..., None]:
    """A compiled function that makes one output row from a line; see :func:`_pixel`."""
    pixel = _pixel(unrolled)

    def sum_columns(line: Any, taps: Taps, flip: bool, out: Any) -> None:
        step = 4 * taps.channels
        count = taps.firsts.size
        source, w, target = line.ctypes.data, taps.weights.ctypes.data, out.ctypes.data
        for x in range(count):
            to = count - 1 - x if flip else x
            at = source + (taps.firsts[x] - taps.origin) * step
            pixel(at, step, w + 4 * taps.stride * x, taps.most, target + 3 * to)

    # numba tells compiled functions apart by name, types and a count in the process that compiled them. In
    # a process that takes code from several others, by way of the disk, equal ones would be the same.
    sum_columns.__qualname__ += f"_{unrolled}"
    return njit(sum_columns)


_columns_any = _columns(0)
_columns_2 = _columns(2)
_columns_3 = _columns(3)
_columns_4 = _columns(4)
_columns_5 = _columns(5)
_columns_6 = _columns(6)
_columns_7 = _columns(7)
_columns_8 = _columns(MAX_UNROLLED)


@njit
def line_size(columns: int) -> int:
    """Floats in the line of an image this wide: what unused taps read beyond it weighs zero."""
    return 4 * (columns + max_taps(columns, 1) + 1)


@njit
def resize(image: Bitmap, box: Box, flip: bool, out: Any, scratch: Any) -> None:
    """Resize a part of an image to the size of ``out``.

    Args:
        image: where the part lies; nothing outside of it is looked at.
        box: the part.
        flip: mirror left to right.
        out: uint8 [height, width, 3], contiguous, filled.
        scratch: has firsts_y, firsts_x, taps_y, taps_x: int64 [height or width], weights_y,
            weights_x: float32 as :func:`triangle_weights` wants them, line: float32
            [line_size(image.width)], finite.
    """
    rows, columns, _ = out.shape
    firsts_y, taps_y, weights_y = scratch.firsts_y[:rows], scratch.taps_y[:rows], scratch.weights_y
    firsts_x, taps_x, weights_x = (
        scratch.firsts_x[:columns],
        scratch.taps_x[:columns],
        scratch.weights_x,
    )
    most = triangle_weights(box.left, box.width, image.width, firsts_x, taps_x, weights_x)
    triangle_weights(box.top, box.height, image.height, firsts_y, taps_y, weights_y)
    stride_y, stride_x = max_taps(box.height, rows), max_taps(box.width, columns)
    taps = Taps(firsts_x, firsts_x[0], weights_x, stride_x, most, image.channels)
    pitch, base = image.channels * image.width, image.channels * taps.origin
    n = min(image.width, int(math.ceil(box.left + box.width))) * image.channels - base
    line = scratch.line
    for y in range(rows):
        weights = weights_y[y * stride_y : (y + 1) * stride_y]
        _sum_rows(image.data, firsts_y[y] * pitch + base, pitch, n, weights, taps_y[y], line)
        to = out[y]
        if most <= 2:
            _columns_2(line, taps, flip, to)
        elif most == 3:
            _columns_3(line, taps, flip, to)
        elif most == 4:
            _columns_4(line, taps, flip, to)
        elif most == 5:
            _columns_5(line, taps, flip, to)
        elif most == 6:
            _columns_6(line, taps, flip, to)
        elif most == 7:
            _columns_7(line, taps, flip, to)
        elif most == MAX_UNROLLED:
            _columns_8(line, taps, flip, to)
        else:
            _columns_any(line, taps, flip, to)
