"""What every optimizer is declared with, and the registry of them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ffcv_r50.registry import Options, Registry


class Optimizer(Options):
    """The options of an optimizer; what may change during training is set before each step."""

    def build(self, groups: list[dict[str, Any]], *, momentum: float) -> torch.optim.Optimizer:
        """The optimizer itself, fused on CUDA.

        Args:
            groups: see :func:`ffcv_r50.optim.parameter_groups`.
            momentum: of its first step.
        """
        raise NotImplementedError


OPTIMIZERS: Registry[Optimizer] = Registry("optimizer")


def on_cuda(groups: list[dict[str, Any]]) -> bool:
    """Whether all parameters are, so that torch's fused kernels can be used."""
    return all(parameter.is_cuda for group in groups for parameter in group["params"])


def with_gradients(
    optimizer: torch.optim.Optimizer,
) -> Iterator[tuple[dict[str, Any], list[Tensor], list[Tensor]]]:
    """The groups of an optimizer, each with its parameters that have gradients, and these."""
    for group in optimizer.param_groups:
        weights = [parameter for parameter in group["params"] if parameter.grad is not None]
        if weights:
            yield group, weights, [weight.grad for weight in weights]
