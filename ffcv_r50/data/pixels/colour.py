"""Operations that mix the channels of a pixel: Pillow's, to the bit."""

import math
from typing import Any

import numpy as np

from ffcv_r50.data.compiled import njit
from ffcv_r50.data.pixels.tone import blended, luma


@njit
def gray(image: Any) -> None:
    """All channels become the pixel's luma."""
    values = image.reshape(image.size)
    for i in range(0, values.size, 3):
        value = luma(values[i], values[i + 1], values[i + 2])
        values[i] = values[i + 1] = values[i + 2] = value


@njit
def saturation(image: Any, factor: float) -> None:
    """Blend with the gray image; 1 changes nothing."""
    share = np.float32(factor)
    values = image.reshape(image.size)
    for i in range(0, values.size, 3):
        value = luma(values[i], values[i + 1], values[i + 2])
        values[i] = blended(value, values[i], share)
        values[i + 1] = blended(value, values[i + 1], share)
        values[i + 2] = blended(value, values[i + 2], share)


@njit
def hue(image: Any, shift: float) -> None:
    """Turn the hue by a share of the circle, -0.5 to 0.5, in 8-bit HSV: torchvision's on a PIL image.

    Operands are float32 or float64 where they are so in Pillow's ``Convert.c``.
    """
    turn = int(shift * 255)
    sectors, fractions = np.empty(256, np.int64), np.empty(256, np.float32)
    for i in range(256):
        angle = ((i + turn) & 0xFF) * 6.0 / 255.0
        sectors[i] = int(math.floor(angle))
        fractions[i] = angle - sectors[i]
    values = image.reshape(image.size)
    for i in range(0, values.size, 3):
        r, g, b = int(values[i]), int(values[i + 1]), int(values[i + 2])
        high, low = max(r, g, b), min(r, g, b)
        if high == low:
            continue
        spread = np.float32(high - low)
        red, green, blue = (
            np.float32(high - r) / spread,
            np.float32(high - g) / spread,
            np.float32(high - b) / spread,
        )
        if r == high:
            place = blue - green
        elif g == high:
            place = np.float32(2.0 + red - blue)
        else:
            place = np.float32(4.0 + green - red)
        around = place / 6.0 + 1.0
        at = int(np.float32(around - 1.0 if around >= 1.0 else around) * 255.0)
        strength = np.float32(np.uint8(spread / np.float32(high) * 255.0) / 255.0)
        sector, fraction = sectors[at], fractions[at]
        p = np.uint8(high * (1.0 - strength) + 0.5)
        q = np.uint8(high * (1.0 - strength * fraction) + 0.5)
        t = np.uint8(high * (1.0 - strength * (1.0 - fraction)) + 0.5)
        v = np.uint8(high)
        if sector == 1:
            values[i], values[i + 1], values[i + 2] = q, v, p
        elif sector == 2:
            values[i], values[i + 1], values[i + 2] = p, v, t
        elif sector == 3:
            values[i], values[i + 1], values[i + 2] = p, q, v
        elif sector == 4:
            values[i], values[i + 1], values[i + 2] = t, p, v
        elif sector == 5:
            values[i], values[i + 1], values[i + 2] = v, p, q
        else:  # 0, and 6, the end of the circle
            values[i], values[i + 1], values[i + 2] = v, t, p
