"""From bytes to numbers with zero mean and unit variance on ImageNet."""

import torch
from torch import Tensor

from ffcv_r50.training.protocols import Batch, Step

# Of the ImageNet training set, in units of 0..255 (torchvision's 0.485 ... x 255).
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


class Normalize:
    """torchvision's normalisation, in float32.

    In float32 also where the network computes in half precision: there a gray level would round to
    a quarter of one.

    Args:
        device: of the images. The constants are made once: making them in each step would copy from
            the host and wait for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._mean = torch.tensor(MEAN, device=device).view(1, 3, 1, 1)
        self._scale = 1 / torch.tensor(STD, device=device).view(1, 3, 1, 1)

    def images(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, h, w] in 0..255 -> float32 [n, 3, h, w]."""
        return (images.float() - self._mean) * self._scale

    def __call__(self, batch: Batch, step: Step) -> Batch:
        """As a transform."""
        return batch._replace(images=self.images(batch.images))
