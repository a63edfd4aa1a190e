"""Adam with an L2 penalty, as torch's."""

from typing import Any

import torch

from ffcv_r50.optim.adamw import AdamW
from ffcv_r50.optim.optimizer import OPTIMIZERS, on_cuda


@OPTIMIZERS.register("adam")
class Adam(AdamW):
    """Adam (Kingma and Ba 2015, arXiv:1412.6980): AdamW but for weight decay, which is an L2 penalty."""

    def build(self, groups: list[dict[str, Any]], *, momentum: float) -> torch.optim.Optimizer:
        """torch's."""
        betas = (momentum, self.beta2)
        return torch.optim.Adam(groups, lr=0.0, betas=betas, eps=self.eps, fused=on_cuda(groups))
