"""How strong an operation is at a level: the table that a policy like RandAugment chooses from."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ffcv_r50.data.compiled import njit
from ffcv_r50.data.pixels import Op

EXACT, CUT, NEAREST = 0, 1, 2


class Level(NamedTuple):
    """An operation and its argument: ``base + span * level``, the level a share of the highest."""

    op: Op
    base: float = 0.0
    """At level 0."""
    span: float = 0.0
    """From level 0 to the highest."""
    signed: bool = False
    """Whether one half of the images gets ``base - span * level``."""
    rounding: int = EXACT
    """Of what is added to the base: none, towards 0, or to the nearest whole number."""


class Strengths(NamedTuple):
    """What torchvision's policies differ in: the arguments at the highest level."""

    shear: float
    across: float
    """Pixels to the side."""
    down: float
    degrees: float
    factor: float
    """Of brightness, colour, contrast and sharpness, beyond 1."""
    bits: tuple[int, int]
    """That posterize keeps at level 0, and how many fewer at the highest."""


def torchvision_levels(strengths: Strengths) -> list[Level]:
    """The 13 operations of torchvision's RandAugment, in its order, without ``Identity``."""
    factors = (Op.BRIGHTNESS, Op.SATURATION, Op.CONTRAST, Op.SHARPNESS)
    return [
        Level(Op.SHEAR_X, 0, strengths.shear, signed=True),
        Level(Op.SHEAR_Y, 0, strengths.shear, signed=True),
        Level(Op.TRANSLATE_X, 0, strengths.across, signed=True, rounding=CUT),
        Level(Op.TRANSLATE_Y, 0, strengths.down, signed=True, rounding=CUT),
        Level(Op.ROTATE, 0, strengths.degrees, signed=True),
        *(Level(op, 1, strengths.factor, signed=True) for op in factors),
        Level(Op.POSTERIZE, strengths.bits[0], -strengths.bits[1], rounding=NEAREST),
        Level(Op.SOLARIZE, 255, -255),
        Level(Op.AUTOCONTRAST),
        Level(Op.EQUALIZE),
    ]


def randaugment_strengths(size: tuple[int, int]) -> Strengths:
    """Those of RandAugment and AutoAugment for images of this height and width."""
    return Strengths(0.3, 150 / 331 * size[1], 150 / 331 * size[0], 30, 0.9, (8, 4))


def table(levels: list[Level]) -> npt.NDArray[np.float64]:
    """As :func:`argument` wants it: float64 [operations, 5]."""
    return np.array(levels, np.float64)


@njit
def argument(row: Any, level: float, negative: bool) -> float:
    """The first argument of an operation.

    Args:
        row: of the table, see :class:`Level`.
        level: a share of the highest.
        negative: which of the two signs, where there are two.
    """
    amount = level * row[2]
    if row[4] == CUT:
        amount = np.trunc(amount)
    elif row[4] == NEAREST:
        amount = np.rint(amount)
    return row[1] - amount if negative and row[3] != 0.0 else row[1] + amount
