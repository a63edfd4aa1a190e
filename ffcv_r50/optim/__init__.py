"""Optimizers by name, the groups of parameters they get, and what is set before each step."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ffcv_r50.optim.adamw import AdamW
from ffcv_r50.optim.lamb import Lamb
from ffcv_r50.optim.lars import Lars
from ffcv_r50.optim.optimizer import OPTIMIZERS, Optimizer
from ffcv_r50.optim.sgd import SGD

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "AdamW",
    "Lamb",
    "Lars",
    "Optimizer",
    "load_state",
    "parameter_groups",
    "set_hyperparameters",
]

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
MARKS = ("betas", "trust", "layerwise")
"""Options of groups that tell optimizers apart whose states do not fit each other."""


def parameter_groups(
    model: nn.Module, decay_norm_and_bias: bool, peak_lr: float = 1.0
) -> list[dict[str, Any]]:
    """Split the parameters into those that decay and those that do not.

    Norms are found by the type of their module, so those of ResNet's down-sampling branch
    (``downsample.1``), which ffcv-imagenet's rule by name (``'bn' in name``) lets decay, do not.

    Args:
        model: whose parameters are split.
        decay_norm_and_bias: put scales of norms and all biases into the decaying group too.
        peak_lr: the highest learning rate of the run.

    Returns:
        Groups for a torch optimizer, marked ``decays`` and ``peak_lr``: decaying first; an empty group
        is left out. Their weight decay is 0 until :func:`set_hyperparameters` sets it.
    """
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            spared = not decay_norm_and_bias and (
                isinstance(module, NORMS) or name.endswith("bias")
            )
            (no_decay if spared else decay).append(parameter)
    both: dict[str, Any] = {"weight_decay": 0.0, "peak_lr": peak_lr}
    groups = [
        {"params": decay, "decays": True, **both},
        {"params": no_decay, "decays": False, **both},
    ]
    return [group for group in groups if group["params"]]


def set_hyperparameters(
    optimizer: torch.optim.Optimizer, *, lr: float, momentum: float, weight_decay: float
) -> None:
    """Use these from the next step on, in every group.

    Args:
        optimizer: built from :func:`parameter_groups`.
        lr: learning rate.
        momentum: SGD's momentum, or the first beta of Adam and LAMB.
        weight_decay: of the groups that decay.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = weight_decay if group["decays"] else 0.0
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        else:
            group["momentum"] = momentum


def load_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take over the tensors of a saved state, none of its groups' options.

    torch's own ``load_state_dict`` takes the options too: a state from a CPU would switch the fused
    kernels off on a GPU.

    Args:
        optimizer: built for the same parameters.
        saved: what ``state_dict`` of an optimizer of the same kind gave.

    Raises:
        ValueError: its groups have other sizes, or it is of another kind of optimizer.
    """
    ours, theirs = optimizer.state_dict()["param_groups"], saved["param_groups"]
    if any((mark in ours[0]) != (mark in theirs[0]) for mark in MARKS):
        raise ValueError("the saved state is of another kind of optimizer")
    sizes = [[len(group["params"]) for group in groups] for groups in (ours, theirs)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the optimizer has groups of {sizes[0]} parameters, the saved state of {sizes[1]}"
        )
    groups = [{**group, "params": old["params"]} for group, old in zip(ours, theirs, strict=True)]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
