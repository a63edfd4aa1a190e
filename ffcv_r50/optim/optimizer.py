"""What every optimizer is declared with, and the registry of them."""

from typing import Any

import torch

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
