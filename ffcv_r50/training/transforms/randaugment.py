"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719)."""

import math
from typing import Annotated

import numpy as np
import numpy.typing as npt

from ffcv_r50.data.compiled import CHECKSUM, njit_cached
from ffcv_r50.data.loader import Draw
from ffcv_r50.data.philox import below, of_view, uniform
from ffcv_r50.data.pixels import Op, levels
from ffcv_r50.data.pixels.levels import CUT, Level
from ffcv_r50.errors import InvalidSetting
from ffcv_r50.keyframes import Varying
from ffcv_r50.registry import Range
from ffcv_r50.training.transforms import TRANSFORMS
from ffcv_r50.training.transforms.planned import Plan, PlannedOptions

HIGHEST = 30
"""Of torchvision's 31 levels."""
TIMM_HIGHEST = 10
TIMM_PROBABILITY = 0.5
"""That an operation is carried out at all, in timm."""


@TRANSFORMS.register("randaugment")
class RandAugment(PlannedOptions):
    """RandAugment: a few operations, chosen uniformly for each image, all at one magnitude.

    torchvision's operations and levels, or timm's: ``rand-m7-mstd0.5-inc1`` is
    ``{magnitude: 7, magnitude_std: 0.5, increasing: true}``. The pixels are those of
    :mod:`ffcv_r50.data.pixels` in both cases; timm by itself interpolates where it moves images, and
    fills with the mean colour.
    """

    ops: Annotated[int, Range(at_least=1, at_most=100)] = 2
    """Operations on each image, one after another."""
    magnitude: Annotated[Varying, Range(at_least=0, at_most=HIGHEST)] = Varying(9)
    """Their level: 0 to 30 as torchvision's, or 0 to 10 with `increasing`."""
    magnitude_std: Annotated[float, Range(at_least=0)] = 0.0
    """Standard deviation of normal noise on the magnitude, for each operation anew: timm's `mstd`."""
    increasing: bool = False
    """timm's operations, all stronger at higher magnitudes (its `inc1`), each carried out with probability 1/2."""

    def model_post_init(self, _context: object) -> None:
        """Refuse a magnitude that timm would cut off."""
        if self.increasing and max(self.magnitude.values) > TIMM_HIGHEST:
            raise InvalidSetting(
                "magnitude", f"with increasing, as in timm, it is at most {TIMM_HIGHEST}"
            )

    def plan(self, size: tuple[int, int], views: npt.NDArray[np.int64], draw: Draw) -> Plan:
        """Torchvision's choice, or timm's."""
        chosen = timm_levels(size) if self.increasing else randaugment_levels(size)
        return draw_operations(
            views,
            draw,
            chosen,
            self.ops,
            highest=TIMM_HIGHEST if self.increasing else HIGHEST,
            magnitude=self.magnitude.at(draw.epoch),
            magnitude_std=self.magnitude_std,
            probability=TIMM_PROBABILITY if self.increasing else 1.0,
        )


def randaugment_levels(size: tuple[int, int]) -> list[Level]:
    """The operations of torchvision's ``RandAugment`` for images of this height and width."""
    strengths = levels.randaugment_strengths(size)
    return [Level(Op.IDENTITY), *levels.torchvision_levels(strengths)]


def timm_levels(size: tuple[int, int]) -> list[Level]:
    """The operations of timm's ``_RAND_INCREASING_TRANSFORMS`` for images of this height and width."""
    factors = (Op.SATURATION, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS)
    return [
        Level(Op.AUTOCONTRAST),
        Level(Op.EQUALIZE),
        Level(Op.INVERT),
        Level(Op.ROTATE, 0, 30, signed=True),
        Level(Op.POSTERIZE, 4, -4, rounding=CUT),
        Level(Op.SOLARIZE, 256, -256, rounding=CUT),
        Level(Op.SOLARIZE_ADD, 0, 110, rounding=CUT),
        *(Level(op, 1, 0.9, signed=True) for op in factors),
        Level(Op.SHEAR_X, 0, 0.3, signed=True),
        Level(Op.SHEAR_Y, 0, 0.3, signed=True),
        Level(Op.TRANSLATE_X, 0, 0.45 * size[1], signed=True),
        Level(Op.TRANSLATE_Y, 0, 0.45 * size[0], signed=True),
    ]


def _build(checksum: int):  # type: ignore[no-untyped-def]
    @njit_cached
    def choose(  # type: ignore[no-untyped-def]
        seed,
        epoch,
        stream,
        views,
        table,
        highest,
        magnitude,
        deviation,
        probability,
        ops,
        arguments,
    ):
        if checksum < 0:
            return
        for i in range(len(views)):
            for j in range(ops.shape[1]):
                r0, r1, r2, r3 = of_view(views[i], epoch, stream + 2 * j, seed)
                if uniform(r2, 0.0, 1.0) >= probability:
                    continue
                level = magnitude
                if magnitude < 0:
                    level = np.float64(below(r3, highest + 1))
                elif deviation > 0:
                    n0, n1, _, _ = of_view(views[i], epoch, stream + 2 * j + 1, seed)
                    # In (0, 1), so that the logarithm is finite.
                    radius = math.sqrt(-2.0 * math.log((n0 + 0.5) * 2.0**-32))
                    level += deviation * radius * math.cos(uniform(n1, 0.0, 2.0 * math.pi))
                share = min(max(level, 0.0), highest) / highest
                row = table[below(r0, len(table))]
                ops[i, j] = int(row[0])
                arguments[i, j, 0] = levels.argument(row, share, below(r1, 2) == 1)

    return choose


_choose = _build(CHECKSUM)


def draw_operations(
    views: npt.NDArray[np.int64],
    draw: Draw,
    chosen: list[Level],
    count: int,
    *,
    highest: int,
    magnitude: float | None,
    magnitude_std: float = 0.0,
    probability: float = 1.0,
) -> Plan:
    """Operations that are chosen uniformly and independently.

    Args:
        views, draw: what they are a function of.
        chosen: the operations to choose from.
        count: operations of each image.
        highest: level.
        magnitude: the level of all; None chooses a whole one for each operation, uniformly.
        magnitude_std: standard deviation of normal noise on the magnitude.
        probability: that an operation is carried out.
    """
    plan = Plan.empty(len(views), count)
    level = -1.0 if magnitude is None else float(magnitude)
    rest = (levels.table(chosen), highest, level, float(magnitude_std), float(probability))
    _choose(draw.seed, draw.epoch, draw.stream, views, *rest, *plan)
    return plan
