"""From bytes to numbers with zero mean and unit variance on the training images."""

from typing import NamedTuple

import torch
from torch import Tensor

from ffcv_r50.training.protocols import Batch, Step


class Statistics(NamedTuple):
    """Of red, green and blue over the training images, in units of 0 to 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def colour(self) -> tuple[int, int, int]:
        """The mean as the nearest red, green and blue of 0 to 255."""
        red, green, blue = (round(255 * v) for v in self.mean)
        return red, green, blue

    def tensors(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Mean and standard deviation in units of 0 to 255, float32 [1, 3, 1, 1] each."""
        mean, std = ([255 * v for v in values] for values in self)
        return (
            torch.tensor(mean, device=device).view(1, 3, 1, 1),
            torch.tensor(std, device=device).view(1, 3, 1, 1),
        )


IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of the ImageNet training set, as torchvision has them."""


class Normalize:
    """torchvision's normalisation, in float32.

    In float32 also where the network computes in half precision: there a gray level would round to
    a quarter of one.

    Args:
        device: of the images. The constants are made once: making them in each step would copy from
            the host and wait for it.
        statistics: what becomes zero and one.
    """

    def __init__(self, device: torch.device, statistics: Statistics = IMAGENET) -> None:
        self._mean, std = statistics.tensors(device)
        self._scale = 1 / std

    def images(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, h, w] in 0..255 -> float32 [n, 3, h, w]."""
        return (images.float() - self._mean) * self._scale

    def __call__(self, batch: Batch, step: Step) -> Batch:
        """As a transform."""
        return batch._replace(images=self.images(batch.images))
