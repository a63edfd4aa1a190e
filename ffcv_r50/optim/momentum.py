"""Momentum as torch's SGD has it, for optimizers that step along something else than the gradient."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ffcv_r50.optim.optimizer import with_gradients


def add_buffers(optimizer: torch.optim.Optimizer) -> None:
    """Give each parameter its momentum buffer before the first step.

    torch makes them in the first step. Its fused kernels leave them uninitialised where that step is
    skipped because fp16 gradients overflowed.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            # -0.0 + g is g to the bit, for g = -0.0 too, as the copy that torch would make.
            optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, -0.0)


class Momentum(torch.optim.Optimizer):
    """Adds up directions, each older one ``momentum`` times the next, and steps along their sum.

    Not fused, so a gradient scaler leaves out the whole of a step that overflowed.

    Args:
        groups: see :func:`ffcv_r50.optim.parameter_groups`.
        momentum: of the first step.
        nesterov: step along the direction and ``momentum`` times the sum, as torch's SGD does.
        options: of every group.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, momentum: float, nesterov: bool, **options: Any
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "nesterov": nesterov, **options})
        add_buffers(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every group."""
        for group, weights, gradients in with_gradients(self):
            directions = self.directions(group, weights, gradients)
            sums = [self.state[weight]["momentum_buffer"] for weight in weights]
            torch._foreach_mul_(sums, group["momentum"])
            torch._foreach_add_(sums, directions)
            if group["nesterov"]:
                sums = list(torch._foreach_add(directions, sums, alpha=group["momentum"]))
            torch._foreach_add_(weights, sums, alpha=-group["lr"])

    def directions(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]
    ) -> list[Tensor]:
        """What is added to the sums.

        Args:
            group: the options that hold in this step.
            weights: may be changed in place.
            gradients: of the weights; not changed.
        """
        raise NotImplementedError
