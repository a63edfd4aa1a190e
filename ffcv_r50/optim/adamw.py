"""Adam with decoupled weight decay, as torch's."""

from typing import Annotated, Any

import torch

from ffcv_r50.optim.optimizer import OPTIMIZERS, Optimizer, on_cuda
from ffcv_r50.registry import Range


@OPTIMIZERS.register("adamw")
class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101); its first beta is the momentum."""

    beta2: Annotated[float, Range(at_least=0, below=1)] = 0.999
    """Decay of the running average of squared gradients."""
    eps: Annotated[float, Range(above=0)] = 1e-8
    """Added to the denominator."""

    def build(self, groups: list[dict[str, Any]], *, momentum: float) -> torch.optim.Optimizer:
        """torch's."""
        betas = (momentum, self.beta2)
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=self.eps, fused=on_cuda(groups))
