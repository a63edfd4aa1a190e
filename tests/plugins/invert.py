"""Transforms: some of the images become their negatives, as they are decoded or on the device."""

from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch

from ffcv_r50.data.loader import Draw, ImageTransform
from ffcv_r50.registry import Range
from ffcv_r50.training.protocols import Batch, Step, Transform
from ffcv_r50.training.transforms import TRANSFORMS, BatchOptions, ImageOptions
from ffcv_r50.training.transforms.normalize import IMAGENET, Statistics


@TRANSFORMS.register("invert_pixels")
class InvertPixels(ImageOptions):
    """Negatives of every so-many-eth sample of the file, others in each epoch."""

    every: Annotated[int, Range(at_least=1)] = 2
    """One of so many."""

    def build(self, statistics: Statistics = IMAGENET) -> ImageTransform:
        """As every transform of images."""
        return self._apply

    def _apply(
        self, images: npt.NDArray[np.uint8], views: npt.NDArray[np.int64], draw: Draw
    ) -> None:
        chosen = (views + draw.epoch) % self.every == 0
        images[chosen] = 255 - images[chosen]


@TRANSFORMS.register("invert")
class Invert(BatchOptions):
    """Negatives of every so-many-eth sample of a global batch, others in each step."""

    every: Annotated[int, Range(at_least=1)] = 2
    """One of so many."""

    def build(self, num_classes: int, stream: int) -> Transform:
        """As every transform of batches."""
        return self._apply

    def _apply(self, batch: Batch, step: Step) -> Batch:
        positions = torch.tensor([*batch.positions])
        chosen = ((positions + step.number) % self.every == 0)[:, None, None, None]
        return batch._replace(images=torch.where(chosen, -batch.images, batch.images))
