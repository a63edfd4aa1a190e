"""Coarse dropout: boxes without content (DeVries and Taylor 2017, arXiv:1708.04552, has one)."""

from functools import partial
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt

from ffcv_r50.data import pixels
from ffcv_r50.data.loader import Draw, ImageTransform
from ffcv_r50.data.pixels import Op
from ffcv_r50.keyframes import Varying
from ffcv_r50.registry import Range, check_ordered
from ffcv_r50.training.transforms import TRANSFORMS
from ffcv_r50.training.transforms.normalize import IMAGENET, Statistics
from ffcv_r50.training.transforms.planned import Plan, PlannedOptions, uniforms

Holes = Annotated[int, Range(at_least=1, at_most=1000)]
Size = Annotated[float, Range(above=0, at_most=1)]

BLACK = (0, 0, 0)


@TRANSFORMS.register("coarse_dropout")
class CoarseDropout(PlannedOptions):
    """Boxes of some images are filled: Albumentations' ``CoarseDropout`` with its strengths.

    Each box lies inside of the image, anywhere in it alike; boxes may overlap.
    """

    holes: tuple[Holes, Holes] = (1, 2)
    """Boxes of an image, least and most."""
    size: tuple[Size, Size] = (0.1, 0.2)
    """Their height as a share of the image's, lowest and highest; their width likewise."""
    probability: Annotated[Varying, Range(at_least=0, at_most=1)] = Varying(0.5)
    """That an image has boxes."""
    fill: Literal["black", "mean"] = "black"
    """Their colour; `mean` is `data.mean`, which is ImageNet's where nothing else is said."""

    def model_post_init(self, _context: object) -> None:
        """Refuse what is no range."""
        check_ordered(self, "holes", "size")

    def build(self, statistics: Statistics = IMAGENET) -> ImageTransform:
        """Carry out the plan, in this colour."""
        return partial(self._fill, statistics.colour if self.fill == "mean" else BLACK)

    def plan(self, size: tuple[int, int], views: npt.NDArray[np.int64], draw: Draw) -> Plan:
        """An operation for each box, which is black here."""
        fewest, most = self.holes
        low, high = self.size
        numbers = uniforms(views, draw, 2 + 4 * most)
        filled = numbers[:, 0] < self.probability.at(draw.epoch)
        holes = np.where(filled, fewest + (most - fewest + 1) * numbers[:, 1], 0).astype(int)
        plan = Plan.empty(len(views), most)
        present = np.arange(most) < holes[:, None]
        plan.ops[present] = Op.BOX
        numbers = numbers[:, 2:].reshape(len(views), most, 4)
        extents = np.maximum(1, np.floor((low + (high - low) * numbers[..., :2]) * size))
        corners = np.floor((np.array(size) - extents + 1) * numbers[..., 2:])
        plan.arguments[..., :4] = np.concatenate([corners, corners + extents], -1)
        return plan

    def _fill(
        self,
        colour: tuple[int, int, int],
        images: npt.NDArray[np.uint8],
        views: npt.NDArray[np.int64],
        draw: Draw,
    ) -> None:
        _, height, width, _ = images.shape
        plan = self.plan((height, width), views, draw)
        plan.arguments[..., 4:] = colour
        pixels.apply(images, *plan)
