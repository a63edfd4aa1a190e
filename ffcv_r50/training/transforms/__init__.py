"""What happens to training images between their decoding and the network, by the names of recipes.

Two kinds, in this order:

- those of single images, uint8, in the loader's threads (:class:`ImageOptions`,
  :class:`~ffcv_r50.data.loader.ImageTransform`): a function of seed, epoch and sample;
- those of batches, normalised, on the device (:class:`BatchOptions`,
  :class:`~ffcv_r50.training.protocols.Transform`): a function of seed, step and position.
"""

from typing import ClassVar

from ffcv_r50.data.loader import ImageTransform
from ffcv_r50.registry import Options, Registry
from ffcv_r50.training.protocols import Transform
from ffcv_r50.training.transforms.normalize import IMAGENET, Statistics


class TransformOptions(Options):
    """The options of a transform of either kind."""


class ImageOptions(TransformOptions):
    """The options of a transform of single images."""

    def build(self, statistics: Statistics = IMAGENET) -> ImageTransform:
        """The transform itself.

        Args:
            statistics: of the training images.
        """
        raise NotImplementedError


class BatchOptions(TransformOptions):
    """The options of a transform of batches."""

    together: ClassVar[int] = 1
    """Neighbouring samples of a batch that one process must have: 2 where they go in pairs."""

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that the images have afterwards, given those of before."""
        return height, width

    def build(self, num_classes: int, stream: int) -> Transform:
        """The transform itself.

        Args:
            num_classes: of the dataset.
            stream: the first of 2^16 random streams that are its own, see
                :mod:`ffcv_r50.data.philox`.
        """
        raise NotImplementedError


TRANSFORMS: Registry[TransformOptions] = Registry("transform")

from ffcv_r50.training.transforms import (  # noqa: E402, F401  # register themselves
    affine,
    augmix,
    auto_augment,
    blur,
    coarse_dropout,
    color_jitter,
    colout,
    erasing,
    grayscale,
    mix,
    randaugment,
    trivial_augment,
)
