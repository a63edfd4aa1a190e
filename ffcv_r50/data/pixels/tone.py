"""Operations that map each value of a pixel to another, whatever stands around it.

Pillow's (``PIL.ImageOps`` and ``PIL.ImageEnhance``), to the bit. Each function makes a table of 256
values, for all channels or for each of the three, and looks up the pixels in it.
"""

from typing import Any

import numpy as np

from ffcv_r50.data.compiled import njit

RED, GREEN, BLUE, HALF = 19595, 38470, 7471, 0x8000
"""Of a pixel's luma in 16 bits, as Pillow rounds ITU-R 601-2."""

LANES = 96
"""Values that are compared side by side: a vector or two, and as many of each channel."""


@njit
def look_up(image: Any, table: Any) -> None:
    """Replace the values of all channels, uint8 [height, width, 3], by those of uint8 [256]."""
    values = image.reshape(image.size)
    for i in range(values.size):
        values[i] = table[values[i]]


@njit
def look_up_channels(image: Any, tables: Any) -> None:
    """Replace the values of each channel by those of its table, uint8 [3, 256]."""
    values = image.reshape(image.size)
    for i in range(0, values.size, 3):
        values[i] = tables[0, values[i]]
        values[i + 1] = tables[1, values[i + 1]]
        values[i + 2] = tables[2, values[i + 2]]


@njit
def blended(degenerate: Any, value: Any, factor: Any) -> Any:
    """Pillow's ``Image.blend`` of two 8-bit values: float32, cut off, not rounded."""
    there = np.float32(degenerate)
    mixed = there + factor * (np.float32(value) - there)
    return np.uint8(min(max(mixed, np.float32(0)), np.float32(255)))


@njit
def invert(image: Any) -> None:
    """The negative."""
    values = image.reshape(image.size)
    for i in range(values.size):
        values[i] = 255 - values[i]


@njit
def posterize(image: Any, bits: int) -> None:
    """Keep the upper bits of each value; 0 leaves black, as on tensors (Pillow refuses it)."""
    mask = np.uint8(256 - (1 << (8 - min(max(bits, 0), 8))) & 0xFF)
    values = image.reshape(image.size)
    for i in range(values.size):
        values[i] &= mask


@njit
def solarize(image: Any, threshold: float) -> None:
    """Invert the values from a threshold on."""
    table = np.empty(256, np.uint8)
    for i in range(256):
        table[i] = i if i < threshold else 255 - i
    look_up(image, table)


@njit
def solarize_add(image: Any, amount: int) -> None:
    """Add to the values below 128, as timm's ``solarize_add``."""
    table = np.empty(256, np.uint8)
    for i in range(256):
        table[i] = min(255, i + amount) if i < 128 else i
    look_up(image, table)


@njit
def brightness(image: Any, factor: float) -> None:
    """Blend with black; 1 changes nothing."""
    table = np.empty(256, np.uint8)
    for i in range(256):
        table[i] = blended(0, i, np.float32(factor))
    look_up(image, table)


@njit
def luma(red: int, green: int, blue: int) -> int:
    """The gray of a pixel, as Pillow's conversion to ``L``."""
    return (RED * red + GREEN * green + BLUE * blue + HALF) >> 16


@njit
def contrast(image: Any, factor: float) -> None:
    """Blend with the image's mean gray; 1 changes nothing."""
    values = image.reshape(image.size)
    total = 0
    for i in range(0, values.size, 3):
        total += luma(values[i], values[i + 1], values[i + 2])
    mean = int(total / (values.size // 3) + 0.5)
    table = np.empty(256, np.uint8)
    for i in range(256):
        table[i] = blended(mean, i, np.float32(factor))
    look_up(image, table)


@njit
def autocontrast(image: Any) -> None:
    """Stretch each channel so that its values reach from 0 to 255."""
    values = image.reshape(image.size)
    lows, highs = np.full(LANES, 255, np.uint8), np.zeros(LANES, np.uint8)
    for begin in range(0, values.size, LANES):
        part = values[begin : begin + LANES]
        for i in range(part.size):
            lows[i] = min(lows[i], part[i])
            highs[i] = max(highs[i], part[i])
    tables = np.empty((3, 256), np.uint8)
    for c in range(3):
        low, high = lows[c::3].min(), highs[c::3].max()
        scale, offset = 1.0, 0.0
        if high > low:
            scale = 255.0 / (high - low)
            offset = -(low * scale)
        for i in range(256):
            tables[c, i] = min(max(int(i * scale + offset), 0), 255)
    look_up_channels(image, tables)


@njit
def equalize(image: Any) -> None:
    """Flatten each channel's histogram."""
    values = image.reshape(image.size)
    # Two histograms of each channel: neighbours mostly count into one bin, and would wait for it.
    counts = np.zeros((6, 256), np.int32)
    even = values.size // 6 * 6
    for i in range(0, even, 6):
        for c in range(6):
            counts[c, values[i + c]] += 1
    for i in range(even, values.size):
        counts[i - even, values[i]] += 1
    tables = np.empty((3, 256), np.uint8)
    for c in range(3):
        total, last = 0, 0
        for i in range(256):
            count = counts[c, i] + counts[c + 3, i]
            total += count
            if count > 0:
                last = count
        step = (total - last) // 255
        passed = step // 2
        for i in range(256):
            tables[c, i] = min(passed // step, 255) if step > 0 else i
            passed += counts[c, i] + counts[c + 3, i]
    look_up_channels(image, tables)
