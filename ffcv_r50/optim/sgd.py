"""Stochastic gradient descent with momentum, as torch's."""

from typing import Any

import torch

from ffcv_r50.optim.optimizer import OPTIMIZERS, Optimizer, on_cuda


@OPTIMIZERS.register("sgd")
class SGD(Optimizer):
    """SGD with momentum; weight decay is an L2 penalty."""

    nesterov: bool = False
    """Nesterov momentum."""

    def build(self, groups: list[dict[str, Any]], *, momentum: float) -> torch.optim.SGD:
        """torch's, whose momentum buffers are there from the start.

        torch makes them in the first step. Its fused kernels leave them uninitialised where that
        step is skipped because fp16 gradients overflowed.
        """
        optimizer = torch.optim.SGD(
            groups, lr=0.0, momentum=momentum, nesterov=self.nesterov, fused=on_cuda(groups)
        )
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                # -0.0 + g is g to the bit, for g = -0.0 too, as the copy that torch would make.
                optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, -0.0)
        return optimizer
