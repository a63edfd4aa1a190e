"""What augmentations do to the pixels of images, and one compiled function that does it.

A transform draws a plan: for each image a few operations by their numbers (:class:`Op`), each with up to
seven arguments; :func:`apply` carries it out in place. So only plans are random, and tests can do the
same with another library.

The operations are those of Pillow and of torchvision on PIL images, which training pipelines see,
with the nearest filter and black borders; equal to the bit, if nothing else is said.
"""

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from ffcv_r50.data.compiled import CHECKSUM, njit, njit_cached
from ffcv_r50.data.pixels import colour, filters, geometry, tone

ARGUMENTS = 7
"""Of an operation, at most."""


class Op(IntEnum):
    """The operations; what follows are their arguments, in this order."""

    IDENTITY = 0
    """None."""
    INVERT = 1
    """None."""
    POSTERIZE = 2
    """Bits that are kept, 0 to 8."""
    SOLARIZE = 3
    """The lowest value that is inverted."""
    SOLARIZE_ADD = 4
    """What is added to values below 128."""
    AUTOCONTRAST = 5
    """None."""
    EQUALIZE = 6
    """None."""
    BRIGHTNESS = 7
    """The factor; 1 changes nothing."""
    CONTRAST = 8
    """Likewise."""
    SATURATION = 9
    """Likewise."""
    SHARPNESS = 10
    """Likewise."""
    SHEAR_X = 11
    """The slope."""
    SHEAR_Y = 12
    """The slope."""
    TRANSLATE_X = 13
    """Pixels to the right."""
    TRANSLATE_Y = 14
    """Pixels down."""
    ROTATE = 15
    """Degrees, counter-clockwise."""
    AFFINE = 16
    """Degrees clockwise, scale, pixels to the right and down."""
    HUE = 17
    """Share of the circle, -0.5 to 0.5."""
    GRAY = 18
    """None."""
    BLUR = 19
    """Standard deviation in pixels."""
    BOX = 20
    """Top, left, bottom and right of a box that is filled; its red, green and blue."""


@njit
def run(op: int, image: Any, argument: Any, scratch: Any) -> None:
    """One operation.

    Args:
        op: its number.
        image: uint8 [height, width, 3], contiguous, changed.
        argument: float64 [ARGUMENTS].
        scratch: uint8 of the image's size.
    """
    value = argument[0]
    if op == Op.INVERT:
        tone.invert(image)
    elif op == Op.POSTERIZE:
        tone.posterize(image, int(value))
    elif op == Op.SOLARIZE:
        tone.solarize(image, value)
    elif op == Op.SOLARIZE_ADD:
        tone.solarize_add(image, int(value))
    elif op == Op.AUTOCONTRAST:
        tone.autocontrast(image)
    elif op == Op.EQUALIZE:
        tone.equalize(image)
    elif op == Op.BRIGHTNESS:
        tone.brightness(image, value)
    elif op == Op.CONTRAST:
        tone.contrast(image, value)
    elif op == Op.SATURATION:
        colour.saturation(image, value)
    elif op == Op.SHARPNESS:
        filters.sharpness(image, value, scratch)
    elif op == Op.SHEAR_X:
        geometry.affine(image, 1.0, value, 0.0, 0.0, 1.0, 0.0, scratch)
    elif op == Op.SHEAR_Y:
        geometry.affine(image, 1.0, 0.0, 0.0, value, 1.0, 0.0, scratch)
    elif op == Op.TRANSLATE_X:
        geometry.affine(image, 1.0, 0.0, -value, 0.0, 1.0, 0.0, scratch)
    elif op == Op.TRANSLATE_Y:
        geometry.affine(image, 1.0, 0.0, 0.0, 0.0, 1.0, -value, scratch)
    elif op == Op.ROTATE:
        geometry.turn(image, -value, 1.0, 0.0, 0.0, scratch)
    elif op == Op.AFFINE:
        geometry.turn(image, value, argument[1], argument[2], argument[3], scratch)
    elif op == Op.HUE:
        colour.hue(image, value)
    elif op == Op.GRAY:
        colour.gray(image)
    elif op == Op.BLUR:
        filters.blur(image, value, scratch)
    elif op == Op.BOX:
        top, left = int(argument[0]), int(argument[1])
        bottom, right = int(argument[2]), int(argument[3])
        geometry.erase(image, top, left, bottom, right, argument[4:])


def _build(checksum: int):  # type: ignore[no-untyped-def]
    @njit_cached
    def apply(images, ops, arguments):  # type: ignore[no-untyped-def]
        if checksum < 0:
            return
        scratch = np.empty(images.shape[1] * images.shape[2] * 3, np.uint8)
        for i in range(len(images)):
            for j in range(ops.shape[1]):
                if ops[i, j] != Op.IDENTITY:
                    run(ops[i, j], images[i], arguments[i, j], scratch)

    return apply


_apply = _build(CHECKSUM)


def apply(
    images: npt.NDArray[np.uint8], ops: npt.NDArray[np.int64], arguments: npt.NDArray[np.float64]
) -> None:
    """Carry out a plan, in place.

    Args:
        images: uint8 [n, height, width, 3], RGB, contiguous.
        ops: int64 [n, k], the operations of each image in their order, see :class:`Op`.
        arguments: float64 [n, k, ARGUMENTS].
    """
    _apply(images, ops, arguments)
