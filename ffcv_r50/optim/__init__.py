"""Parameter groups and optimizers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def parameter_groups(
    model: nn.Module, weight_decay: float, decay_norm_and_bias: bool
) -> list[dict[str, object]]:
    """Split the parameters into those that decay and those that do not.

    Norms are found by the type of their module, so those of ResNet's down-sampling branch
    (``downsample.1``), which ffcv-imagenet's rule by name (``'bn' in name``) lets decay, do not.

    Args:
        model: whose parameters are split.
        weight_decay: of the decaying group.
        decay_norm_and_bias: put scales of norms and all biases into the decaying group too.

    Returns:
        Groups for a torch optimizer: decaying first; an empty group is left out.
    """
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            spared = not decay_norm_and_bias and (
                isinstance(module, NORMS) or name.endswith("bias")
            )
            (no_decay if spared else decay).append(parameter)
    groups: list[dict[str, object]] = [
        {"params": decay, "weight_decay": weight_decay},
        {"params": no_decay, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def sgd(
    model: nn.Module,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decay_norm_and_bias: bool,
) -> torch.optim.SGD:
    """SGD as torch's; the learning rate is set before each step, see :func:`set_values`."""
    return torch.optim.SGD(
        parameter_groups(model, weight_decay, decay_norm_and_bias),
        lr=0.0,
        momentum=momentum,
        nesterov=nesterov,
        fused=all(parameter.is_cuda for parameter in model.parameters()),
    )


def set_values(optimizer: torch.optim.Optimizer, values: Mapping[str, float]) -> None:
    """Use the schedule's values in every group from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = values["lr"]


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over a saved state."""
    optimizer.load_state_dict(state)
