"""A transform: some of the images become their negatives."""

from typing import Annotated

import torch

from ffcv_r50.registry import Range
from ffcv_r50.training.protocols import Batch, Step, Transform
from ffcv_r50.training.transforms import TRANSFORMS, TransformOptions


@TRANSFORMS.register("invert")
class Invert(TransformOptions):
    """Negatives of every so-many-eth sample of a global batch, others in each step."""

    every: Annotated[int, Range(at_least=1)] = 2
    """One of so many."""

    def build(self, num_classes: int) -> Transform:
        """As every transform."""
        return self._apply

    def _apply(self, batch: Batch, step: Step) -> Batch:
        chosen = ((batch.positions + step.number) % self.every == 0)[:, None, None, None]
        return batch._replace(images=torch.where(chosen, 255 - batch.images, batch.images))
