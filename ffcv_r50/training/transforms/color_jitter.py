"""Colour jitter: torchvision's ``ColorJitter``."""

from typing import Annotated

import numpy as np
import numpy.typing as npt

from ffcv_r50.data.loader import Draw
from ffcv_r50.data.pixels import Op
from ffcv_r50.keyframes import Varying
from ffcv_r50.registry import Range
from ffcv_r50.training.transforms import TRANSFORMS
from ffcv_r50.training.transforms.planned import Plan, PlannedOptions, uniforms

Strength = Annotated[Varying, Range(at_least=0, at_most=100)]

OPS = (Op.BRIGHTNESS, Op.CONTRAST, Op.SATURATION, Op.HUE)


@TRANSFORMS.register("color_jitter")
class ColorJitter(PlannedOptions):
    """Other brightness, contrast, saturation and hue, in random order; timm's strengths.

    The pixels are those of torchvision's ``ColorJitter`` on PIL images.
    """

    brightness: Strength = Varying(0.4)
    """Its factor is at most so far from 1; 0 leaves it as it is."""
    contrast: Strength = Varying(0.4)
    """Likewise."""
    saturation: Strength = Varying(0.4)
    """Likewise."""
    hue: Annotated[Varying, Range(at_least=0, at_most=0.5)] = Varying(0.0)
    """It turns at most by this share of the circle."""
    probability: Annotated[Varying, Range(at_least=0, at_most=1)] = Varying(1.0)
    """That an image is changed."""

    def plan(self, size: tuple[int, int], views: npt.NDArray[np.int64], draw: Draw) -> Plan:
        """Four operations for each image, those of strength 0 left out."""
        strengths = (self.brightness, self.contrast, self.saturation, self.hue)
        widest = np.array([strength.at(draw.epoch) for strength in strengths])
        middle = np.array([1.0, 1.0, 1.0, 0.0])
        low, high = middle - widest, middle + widest
        low[:3] = np.maximum(low[:3], 0)
        numbers = uniforms(views, draw, 9)
        chosen = (numbers[:, 8:] < self.probability.at(draw.epoch)) & (widest > 0)
        order = np.argsort(numbers[:, 4:8], axis=1)
        plan = Plan.empty(len(views), 4)
        plan.ops[:] = np.take_along_axis(np.where(chosen, OPS, Op.IDENTITY), order, 1)
        factors = low + (high - low) * numbers[:, :4]
        plan.arguments[:, :, 0] = np.take_along_axis(factors, order, 1)
        return plan
