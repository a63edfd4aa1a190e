"""Operations that move pixels: Pillow's affine transform with its nearest filter, to the bit.

Pillow computes where an output pixel comes from in 16.16 fixed point, one sum a pixel, and in float64
where rows and columns do not mix; so does this. What comes from outside of the image is black.
"""

import math
from typing import Any

import numpy as np

from ffcv_r50.data.compiled import njit


@njit
def affine(
    image: Any,
    a: float,
    b: float,
    c: float,
    d: float,
    e: float,
    f: float,
    source: Any,
) -> None:
    """The pixel at (x, y) comes from (a x + b y + c, d x + e y + f), both of its center.

    Args:
        image: uint8 [height, width, 3], changed.
        a, b, c, d, e, f: what Pillow calls the data of ``Image.Transform.AFFINE``, in pixels.
        source: uint8 of the image's size, scratch.
    """
    height, width, _ = image.shape
    out = image.reshape(image.size)
    for i in range(out.size):
        source[i] = out[i]
    if b == 0.0 and d == 0.0:
        _scale(out, height, width, a, c + 0.5 * a, e, f + 0.5 * e, source)
        return
    step_x, step_y = _fixed(a), _fixed(d)
    begin_x, begin_y = _fixed(c + 0.5 * a + 0.5 * b), _fixed(f + 0.5 * d + 0.5 * e)
    to = 0
    for _ in range(height):
        x, y = begin_x, begin_y
        for _ in range(width):
            column, row = x >> 16, y >> 16
            if 0 <= column < width and 0 <= row < height:
                at = np.uint64(3 * (row * width + column))
                out[to] = source[at]
                out[to + 1] = source[at + np.uint64(1)]
                out[to + 2] = source[at + np.uint64(2)]
            else:
                out[to] = out[to + 1] = out[to + 2] = 0
            to += 3
            x += step_x
            y += step_y
        begin_x += _fixed(b)
        begin_y += _fixed(e)


@njit
def _fixed(number: float) -> int:
    return int(math.floor(number * 65536.0 + 0.5))


@njit
def _scale(
    out: Any,
    height: int,
    width: int,
    step_x: float,
    begin_x: float,
    step_y: float,
    y: float,
    source: Any,
) -> None:
    """Rows and columns that are moved and repeated, each for itself."""
    columns = np.empty(width, np.int64)
    x = begin_x
    for i in range(width):
        columns[i] = 3 * int(x) if 0.0 <= x < width else -1
        x += step_x
    for i in range(height):
        to = 3 * width * i
        if 0.0 <= y < height:
            begin = 3 * width * int(y)
            for j in range(width):
                column = columns[j]
                for k in range(3):
                    out[to + 3 * j + k] = source[begin + column + k] if column >= 0 else 0
        else:
            out[to : to + 3 * width] = 0
        y += step_y


@njit
def turn(image: Any, degrees: float, scale: float, right: float, down: float, source: Any) -> None:
    """Turn clockwise and enlarge around the center, then move: torchvision's ``affine``.

    Args:
        image: uint8 [height, width, 3], changed.
        degrees: of the turn.
        scale: above 1 enlarges.
        right, down: of the move in pixels.
        source: uint8 of the image's size, scratch.
    """
    height, width, _ = image.shape
    middle_x, middle_y = 0.5 * width, 0.5 * height
    angle = math.radians(degrees)
    a, b = math.cos(angle) / scale, math.sin(angle) / scale
    c = a * (-middle_x - right) + b * (-middle_y - down) + middle_x
    f = -b * (-middle_x - right) + a * (-middle_y - down) + middle_y
    affine(image, a, b, c, -b, a, f, source)


@njit
def erase(image: Any, top: int, left: int, bottom: int, right: int, colour: Any) -> None:
    """Fill a box inside of the image with a colour: three whole numbers from 0 to 255."""
    for y in range(top, bottom):
        for x in range(left, right):
            for channel in range(3):
                image[y, x, channel] = colour[channel]
