"""Which window of an image is shown, and whether it is mirrored.

Random numbers are Philox's, keyed by the seed and counted by epoch and sample index, so a window
does not depend on which thread, rank or run asks for it.
"""

import math
from typing import NamedTuple

import numpy as np

from ffcv_r50.data.compiled import njit
from ffcv_r50.data.philox import below, of_view, uniform

_TRIES = 10


class Window(NamedTuple):
    """A rectangle of whole pixels inside an image."""

    top: int
    left: int
    height: int
    width: int


@njit
def random_crop(
    seed: np.uint64,
    epoch: int,
    view: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Window:
    """The window of torchvision's ``RandomResizedCrop.get_params``, with numbers of our own.

    Args:
        seed, epoch, view: what the window is a function of, besides the image's size; a view is the
            sample's index, and which repetition of it above the low 32 bits.
        height, width: the image's size in pixels.
        scale: lower and upper bound of the window's share of the image's area.
        ratio: lower and upper bound of its width over its height.
    """
    area = height * width
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for i in range(_TRIES):
        r0, r1, r2, r3 = of_view(view, epoch, i, seed)
        target = area * uniform(r0, scale[0], scale[1])
        aspect = math.exp(uniform(r1, log_low, log_high))
        w = int(round(math.sqrt(target * aspect)))
        h = int(round(math.sqrt(target / aspect)))
        if 0 < w <= width and 0 < h <= height:
            return Window(below(r2, height - h + 1), below(r3, width - w + 1), h, w)
    h, w = height, width
    if width < ratio[0] * height:
        h = max(1, min(height, int(round(width / ratio[0]))))
    elif width > ratio[1] * height:
        w = max(1, min(width, int(round(height * ratio[1]))))
    return Window((height - h) // 2, (width - w) // 2, h, w)


@njit
def random_flip(seed: np.uint64, epoch: int, view: int, probability: float) -> bool:
    """Whether the view is mirrored left to right in this epoch."""
    r0, _, _, _ = of_view(view, epoch, _TRIES, seed)
    return uniform(r0, 0.0, 1.0) < probability


@njit
def center_crop(height: int, width: int, ratio: float) -> Window:
    """The central square of ``int(ratio * min(height, width))`` pixels, as FFCV's center crop."""
    side = min(max(1, int(ratio * min(height, width))), height, width)
    return Window((height - side) // 2, (width - side) // 2, side, side)
