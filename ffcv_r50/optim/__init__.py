"""Optimizers by name, the groups of parameters they get, and what is set before each step."""

import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ffcv_r50.optim.adam import Adam
from ffcv_r50.optim.adamw import AdamW
from ffcv_r50.optim.lamb import Lamb
from ffcv_r50.optim.lars import Lars
from ffcv_r50.optim.optimizer import OPTIMIZERS, Optimizer
from ffcv_r50.optim.parts import Parts
from ffcv_r50.optim.sgd import SGD

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "Adam",
    "AdamW",
    "Lamb",
    "Lars",
    "Optimizer",
    "Parts",
    "load_state",
    "parameter_groups",
    "set_hyperparameters",
]

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
MARKS = ("betas", "trust", "layerwise")
"""Options of groups that tell optimizers apart whose states do not fit each other."""


def parameter_groups(
    model: nn.Module,
    decay_norm_and_bias: bool,
    peak_lr: float = 1.0,
    parts: Parts | None = None,
) -> list[dict[str, Any]]:
    """Split the parameters into those that decay and those that do not, in each part.

    Norms are found by the type of their module, so those of ResNet's down-sampling branch
    (``downsample.1``), which ffcv-imagenet's rule by name (``'bn' in name``) lets decay, do not. Nor do
    other parameters of one dimension (scales of layers), and what a network of timm's names itself
    (positions, tokens), as in timm.

    Args:
        model: whose parameters are split.
        decay_norm_and_bias: put all of them into the decaying group too.
        peak_lr: the highest learning rate of the run.
        parts: of the model, where they have rates of their own.

    Returns:
        Groups for a torch optimizer, marked ``decays``, ``peak_lr`` and ``part`` (its number in
        ``parts``): part by part, decaying first; an empty group is left out. Their weight decay is 0
        until :func:`set_hyperparameters` sets it.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    named: Any = getattr(model, "no_weight_decay", set)()
    for prefix, module in model.named_modules():
        for inner, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            name = f"{prefix}.{inner}".removeprefix(".")
            spared = not decay_norm_and_bias and (
                isinstance(module, NORMS)
                or parameter.dim() <= 1
                or inner.endswith("bias")
                or any(fnmatch.fnmatchcase(name, pattern) for pattern in named)
            )
            groups.setdefault((parts.number(name) if parts else 0, spared), []).append(parameter)
    return [
        {
            "params": groups[part, spared],
            "decays": not spared,
            "part": part,
            "weight_decay": 0.0,
            "peak_lr": peak_lr,
        }
        for part, spared in sorted(groups)
    ]


def set_hyperparameters(
    optimizer: torch.optim.Optimizer,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    multipliers: Sequence[float] = (1.0,),
) -> None:
    """Use these from the next step on, in every group.

    Args:
        optimizer: built from :func:`parameter_groups`.
        lr: learning rate.
        momentum: SGD's momentum, or the first beta of Adam and LAMB.
        weight_decay: of the groups that decay.
        multipliers: of the learning rate, by the number of the group's part.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * multipliers[group["part"]]
        group["weight_decay"] = weight_decay if group["decays"] else 0.0
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        else:
            group["momentum"] = momentum


SHAPED = ("momentum_buffer", "exp_avg", "exp_avg_sq")
"""What optimizers keep of a parameter that has its shape."""


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
    # torch itself does not look: the next step would fail.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in zip((i for g in groups for i in g["params"]), parameters, strict=True):
        for name, value in saved["state"].get(index, {}).items():
            fits = (
                isinstance(value, torch.Tensor)
                and value.shape == parameter.shape
                and value.layout == parameter.layout
            )
            if name in SHAPED and value is not None and not fits:
                raise ValueError(f"the {name} of parameter {index} has another shape than it")
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
