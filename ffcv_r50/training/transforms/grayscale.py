"""Gray images among those in colour."""

from typing import Annotated

import numpy as np
import numpy.typing as npt

from ffcv_r50.data.loader import Draw
from ffcv_r50.data.pixels import Op
from ffcv_r50.keyframes import Varying
from ffcv_r50.registry import Range
from ffcv_r50.training.transforms import TRANSFORMS
from ffcv_r50.training.transforms.planned import Plan, PlannedOptions, uniforms


@TRANSFORMS.register("grayscale")
class Grayscale(PlannedOptions):
    """Some images lose their colours: torchvision's ``RandomGrayscale`` on PIL images."""

    probability: Annotated[Varying, Range(at_least=0, at_most=1)] = Varying(0.1)
    """That an image becomes gray."""

    def plan(self, size: tuple[int, int], views: npt.NDArray[np.int64], draw: Draw) -> Plan:
        """One operation for those that become gray."""
        plan = Plan.empty(len(views), 1)
        plan.ops[uniforms(views, draw, 1) < self.probability.at(draw.epoch)] = Op.GRAY
        return plan
