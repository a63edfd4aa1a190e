"""Networks that take bytes: normalisation as their first layer."""

import torch
from torch import Tensor, nn

from ffcv_r50.training.transforms.normalize import Statistics


class OfBytes(nn.Module):
    """A network that normalises its images itself.

    It maps uint8 [n, height, width, 3], RGB, as image libraries have them, to logits [n, classes].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, statistics: Statistics) -> None:
        super().__init__()
        self.network = network
        mean, std = statistics.tensors()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        """The network's logits."""
        normalised = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        logits: Tensor = self.network(normalised)
        return logits


class Restored(nn.Module):
    """What :class:`OfBytes` became, given normalised images: the bytes they were made of are exact."""

    def __init__(self, network: nn.Module, statistics: Statistics) -> None:
        super().__init__()
        self.network = network
        self._mean, self._std = statistics.tensors()

    def forward(self, images: Tensor) -> Tensor:
        """float32 [n, 3, height, width], normalised -> logits [n, classes]."""
        pixels = (images * self._std + self._mean).round().to(torch.uint8)
        logits: Tensor = self.network(pixels.permute(0, 2, 3, 1).contiguous())
        return logits
