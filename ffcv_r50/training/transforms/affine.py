"""Turned, enlarged and moved images."""

from typing import Annotated

import numpy as np
import numpy.typing as npt

from ffcv_r50.data.loader import Draw
from ffcv_r50.data.pixels import Op
from ffcv_r50.keyframes import Varying
from ffcv_r50.registry import Range, check_ordered
from ffcv_r50.training.transforms import TRANSFORMS
from ffcv_r50.training.transforms.planned import Plan, PlannedOptions, uniforms

Share = Annotated[Varying, Range(at_least=0, at_most=1)]
Scale = Annotated[float, Range(at_least=0.01, at_most=100)]


@TRANSFORMS.register("affine")
class Affine(PlannedOptions):
    """Some images are turned, enlarged and moved: Albumentations' ``ShiftScaleRotate`` with its strengths.

    The pixels are those of torchvision's ``RandomAffine`` on PIL images: nearest, black outside, moved
    by whole pixels.
    """

    rotate: Annotated[Varying, Range(at_least=0, at_most=180)] = Varying(45)
    """Degrees, at most, to either side."""
    shift: Share = Varying(0.0625)
    """Share of the width and of the height, at most, to either side."""
    scale: tuple[Scale, Scale] = (0.9, 1.1)
    """Lowest and highest; above 1 enlarges."""
    probability: Share = Varying(0.5)
    """That an image is changed."""

    def model_post_init(self, _context: object) -> None:
        """Refuse what is no range."""
        check_ordered(self, "scale")

    def plan(self, size: tuple[int, int], views: npt.NDArray[np.int64], draw: Draw) -> Plan:
        """One operation for those that are changed."""
        numbers = uniforms(views, draw, 5)
        plan = Plan.empty(len(views), 1)
        plan.ops[numbers[:, 0] < self.probability.at(draw.epoch)] = Op.AFFINE
        arguments = plan.arguments[:, 0]
        arguments[:, 0] = self.rotate.at(draw.epoch) * (2 * numbers[:, 1] - 1)
        low, high = self.scale
        arguments[:, 1] = low + (high - low) * numbers[:, 2]
        farthest = self.shift.at(draw.epoch) * np.array([size[1], size[0]])
        arguments[:, 2:4] = np.rint(farthest * (2 * numbers[:, 3:5] - 1))
        return plan
