"""Stochastic gradient descent with momentum, as torch's; with decoupled weight decay, as Composer's."""

from typing import Any

import torch
from torch import Tensor

from ffcv_r50.optim.momentum import Momentum, add_buffers
from ffcv_r50.optim.optimizer import OPTIMIZERS, Optimizer, on_cuda


@OPTIMIZERS.register("sgd")
class SGD(Optimizer):
    """SGD with momentum; weight decay is an L2 penalty, or decoupled."""

    nesterov: bool = False
    """Nesterov momentum."""
    decoupled: bool = False
    """Each step multiplies the weights by 1 - (rate / peak rate) * weight decay, and the momentum
    has no part in it, as in Mosaic's DecoupledSGDW; the peak is the highest rate of `schedule.lr`.
    About as strong is an L2 penalty of decay * (1 - momentum) / peak."""

    def build(self, groups: list[dict[str, Any]], *, momentum: float) -> torch.optim.Optimizer:
        """torch's, whose momentum buffers are there from the start, or :class:`DecoupledSGD`."""
        if self.decoupled:
            return DecoupledSGD(groups, momentum=momentum, nesterov=self.nesterov)
        optimizer = torch.optim.SGD(
            groups, lr=0.0, momentum=momentum, nesterov=self.nesterov, fused=on_cuda(groups)
        )
        add_buffers(optimizer)
        return optimizer


class DecoupledSGD(Momentum):
    """SGD whose weight decay is no part of the gradient (Loshchilov and Hutter 2019, arXiv:1711.05101).

    The decay follows the schedule of the rate, not its height, as the paper's (algorithm 1, where the
    rate is a constant times the schedule) and Composer's ``DecoupledSGDW`` do.
    """

    def directions(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]
    ) -> list[Tensor]:
        """The gradients; the weights decay."""
        torch._foreach_mul_(weights, 1 - group["lr"] / group["peak_lr"] * group["weight_decay"])
        return gradients
