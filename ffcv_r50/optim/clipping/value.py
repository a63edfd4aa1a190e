"""Clipping of each number of the gradient."""

from typing import Annotated

from torch import Tensor, nn

from ffcv_r50.optim.clipping import CLIPPINGS, Clipping, ClippingOptions
from ffcv_r50.registry import Range


@CLIPPINGS.register("value")
class ClipValue(ClippingOptions):
    """Moves each number of the gradient into [-at, at], as torch's ``clip_grad_value_``."""

    at: Annotated[float, Range(above=0)]
    """Largest absolute value."""

    def build(self, network: nn.Module, head: nn.Module) -> Clipping:
        """On the device, without waiting for it."""

        def clip(gradients: Tensor, norm: Tensor) -> None:
            gradients.clamp_(-self.at, self.at)

        return clip
