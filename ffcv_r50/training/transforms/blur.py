"""Gaussian blur."""

from typing import Annotated

import numpy as np
import numpy.typing as npt

from ffcv_r50.data.loader import Draw
from ffcv_r50.data.pixels import Op
from ffcv_r50.keyframes import Varying
from ffcv_r50.registry import Range, check_ordered
from ffcv_r50.training.transforms import TRANSFORMS
from ffcv_r50.training.transforms.planned import Plan, PlannedOptions, uniforms

Sigma = Annotated[float, Range(above=0, at_most=100)]


@TRANSFORMS.register("blur")
class Blur(PlannedOptions):
    """Some images are blurred: torchvision's ``GaussianBlur``, within 1 of 255.

    Its kernel has ``2 * ceil(3 * sigma) + 1`` pixels, so that it ends where a Gaussian does.
    """

    sigma: tuple[Sigma, Sigma] = (0.1, 2.0)
    """Standard deviation in pixels, lowest and highest."""
    probability: Annotated[Varying, Range(at_least=0, at_most=1)] = Varying(0.5)
    """That an image is blurred."""

    def model_post_init(self, _context: object) -> None:
        """Refuse what is no range."""
        check_ordered(self, "sigma")

    def plan(self, size: tuple[int, int], views: npt.NDArray[np.int64], draw: Draw) -> Plan:
        """One operation for those that are blurred."""
        numbers = uniforms(views, draw, 2)
        plan = Plan.empty(len(views), 1)
        plan.ops[numbers[:, 0] < self.probability.at(draw.epoch)] = Op.BLUR
        low, high = self.sigma
        plan.arguments[:, 0, 0] = low + (high - low) * numbers[:, 1]
        return plan
