"""AutoAugment (Cubuk et al. 2018, arXiv:1805.09501)."""

import numpy as np
import numpy.typing as npt

from ffcv_r50.data.compiled import CHECKSUM, njit_cached
from ffcv_r50.data.loader import Draw
from ffcv_r50.data.philox import below, of_view, uniform
from ffcv_r50.data.pixels import Op, levels
from ffcv_r50.data.pixels.levels import Level
from ffcv_r50.training.transforms import TRANSFORMS
from ffcv_r50.training.transforms.planned import Plan, PlannedOptions

HIGHEST = 9
"""Of the ten levels."""

IMAGENET: list[tuple[tuple[Op, float, int], tuple[Op, float, int]]] = [
    ((Op.POSTERIZE, 0.4, 8), (Op.ROTATE, 0.6, 9)),
    ((Op.SOLARIZE, 0.6, 5), (Op.AUTOCONTRAST, 0.6, 0)),
    ((Op.EQUALIZE, 0.8, 0), (Op.EQUALIZE, 0.6, 0)),
    ((Op.POSTERIZE, 0.6, 7), (Op.POSTERIZE, 0.6, 6)),
    ((Op.EQUALIZE, 0.4, 0), (Op.SOLARIZE, 0.2, 4)),
    ((Op.EQUALIZE, 0.4, 0), (Op.ROTATE, 0.8, 8)),
    ((Op.SOLARIZE, 0.6, 3), (Op.EQUALIZE, 0.6, 0)),
    ((Op.POSTERIZE, 0.8, 5), (Op.EQUALIZE, 1.0, 0)),
    ((Op.ROTATE, 0.2, 3), (Op.SOLARIZE, 0.6, 8)),
    ((Op.EQUALIZE, 0.6, 0), (Op.POSTERIZE, 0.4, 6)),
    ((Op.ROTATE, 0.8, 8), (Op.SATURATION, 0.4, 0)),
    ((Op.ROTATE, 0.4, 9), (Op.EQUALIZE, 0.6, 0)),
    ((Op.EQUALIZE, 0.0, 0), (Op.EQUALIZE, 0.8, 0)),
    ((Op.INVERT, 0.6, 0), (Op.EQUALIZE, 1.0, 0)),
    ((Op.SATURATION, 0.6, 4), (Op.CONTRAST, 1.0, 8)),
    ((Op.ROTATE, 0.8, 8), (Op.SATURATION, 1.0, 2)),
    ((Op.SATURATION, 0.8, 8), (Op.SOLARIZE, 0.8, 7)),
    ((Op.SHARPNESS, 0.4, 7), (Op.INVERT, 0.6, 0)),
    ((Op.SHEAR_X, 0.6, 5), (Op.EQUALIZE, 1.0, 0)),
    ((Op.SATURATION, 0.4, 0), (Op.EQUALIZE, 0.6, 0)),
    ((Op.EQUALIZE, 0.4, 0), (Op.SOLARIZE, 0.2, 4)),
    ((Op.SOLARIZE, 0.6, 5), (Op.AUTOCONTRAST, 0.6, 0)),
    ((Op.INVERT, 0.6, 0), (Op.EQUALIZE, 1.0, 0)),
    ((Op.SATURATION, 0.6, 4), (Op.CONTRAST, 1.0, 8)),
    ((Op.EQUALIZE, 0.8, 0), (Op.EQUALIZE, 0.6, 0)),
]
"""Pairs of an operation, its probability and its level: the policy found on ImageNet."""


@TRANSFORMS.register("auto_augment")
class AutoAugment(PlannedOptions):
    """One of 25 pairs of operations on each image: torchvision's ``AutoAugment``, its policy for ImageNet.

    The pixels are those of :mod:`ffcv_r50.data.pixels`.
    """

    def plan(self, size: tuple[int, int], views: npt.NDArray[np.int64], draw: Draw) -> Plan:
        """One pair for each image, of which each operation is carried out with its probability."""
        strengths = levels.randaugment_strengths(size)
        rows = {
            level.op: level for level in [Level(Op.INVERT), *levels.torchvision_levels(strengths)]
        }
        table = levels.table([rows[op] for pair in IMAGENET for op, _, _ in pair])
        chances = np.array(
            [(probability, level) for pair in IMAGENET for _, probability, level in pair]
        )
        plan = Plan.empty(len(views), 2)
        _choose(draw.seed, draw.epoch, draw.stream, views, table, chances, *plan)
        return plan


def _build(checksum: int):  # type: ignore[no-untyped-def]
    @njit_cached
    def choose(seed, epoch, stream, views, table, chances, ops, arguments):  # type: ignore[no-untyped-def]
        if checksum < 0:
            return
        for i in range(len(views)):
            r0, _, _, _ = of_view(views[i], epoch, stream, seed)
            pair = below(r0, len(table) // 2)
            for j in range(2):
                r0, r1, _, _ = of_view(views[i], epoch, stream + 1 + j, seed)
                probability, level = chances[2 * pair + j]
                if uniform(r0, 0.0, 1.0) < probability:
                    row = table[2 * pair + j]
                    ops[i, j] = int(row[0])
                    arguments[i, j, 0] = levels.argument(row, level / HIGHEST, below(r1, 2) == 1)

    return choose


_choose = _build(CHECKSUM)
