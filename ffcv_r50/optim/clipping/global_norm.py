"""Clipping by the norm of the whole gradient (Pascanu et al. 2013, arXiv:1211.5063)."""

from typing import Annotated

from torch import Tensor, nn

from ffcv_r50.optim.clipping import CLIPPINGS, Clipping, ClippingOptions
from ffcv_r50.registry import Range


@CLIPPINGS.register("norm")
class ClipNorm(ClippingOptions):
    """Scales a gradient that is longer than `at` to that length, as torch's ``clip_grad_norm_``."""

    at: Annotated[float, Range(above=0)]
    """Largest 2-norm over all parameters; the log of steps has it as it is without clipping."""

    def build(self, network: nn.Module, head: nn.Module) -> Clipping:
        """On the device, without waiting for it."""

        def clip(gradients: Tensor, norm: Tensor) -> None:
            gradients.mul_((self.at / (norm + 1e-6)).clamp(max=1.0))  # torch's own 1e-6

        return clip
