"""TrivialAugment (Müller and Hutter 2021, arXiv:2103.10158)."""

import numpy as np
import numpy.typing as npt

from ffcv_r50.data.loader import Draw
from ffcv_r50.data.pixels import Op
from ffcv_r50.data.pixels.levels import Level, Strengths, torchvision_levels
from ffcv_r50.training.transforms import TRANSFORMS
from ffcv_r50.training.transforms.planned import Plan, PlannedOptions
from ffcv_r50.training.transforms.randaugment import HIGHEST, draw_operations

WIDE = Strengths(0.99, 32, 32, 135, 0.99, (8, 6))


@TRANSFORMS.register("trivial_augment")
class TrivialAugment(PlannedOptions):
    """One operation on each image, of any strength: torchvision's ``TrivialAugmentWide``.

    The pixels are those of :mod:`ffcv_r50.data.pixels`.
    """

    def plan(self, size: tuple[int, int], views: npt.NDArray[np.int64], draw: Draw) -> Plan:
        """One of 14 operations and one of 31 levels."""
        chosen = [Level(Op.IDENTITY), *torchvision_levels(WIDE)]
        return draw_operations(views, draw, chosen, 1, highest=HIGHEST, magnitude=None)
