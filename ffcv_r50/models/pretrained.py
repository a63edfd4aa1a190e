"""Weights that a network starts from."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ffcv_r50 import models
from ffcv_r50.errors import UserError

WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before the names of a network they wrap."""

BLUR_FILTER = ".blur_filter"
"""What ffcv-imagenet's blurpool adds to the name of a convolution, which it calls ``NAME.conv``."""


def plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by torchvision's names, without those of what a network was wrapped in."""
    given = {_unwrapped(name): tensor for name, tensor in weights.items()}
    blurred = [name.removesuffix(BLUR_FILTER) for name in given if name.endswith(BLUR_FILTER)]
    for name in blurred:
        del given[name + BLUR_FILTER]
        inner = f"{name}.conv."
        given = {
            n.replace(inner, f"{name}.") if n.startswith(inner) else n: t for n, t in given.items()
        }
    return given


def start_from(network: nn.Module, weights: Mapping[str, Tensor], where: str) -> str:
    """Copy weights into a network; its last layer stays new where the classes differ.

    Args:
        network: whose names are torchvision's.
        weights: of the same architecture, by torchvision's or timm's names (which are the same for
            ResNets).
        where: what an error begins with.

    Returns:
        What was taken, for a person to read.

    Raises:
        UserError: other layers than the last one do not fit; names some.
    """
    given = plain_names(weights)
    ours = network.state_dict()
    # torchvision's GoogLeNet and Inception have layers for an auxiliary loss, which ours lack.
    given = {n: t for n, t in given.items() if n in ours or not n.lower().startswith("aux")}
    head = head_names(network)
    replaced = any(name not in given or given[name].shape != ours[name].shape for name in head)
    if replaced:
        given = {name: tensor for name, tensor in given.items() if name not in head}
        given |= {name: ours[name] for name in head}
    # Counts of batches have no part in what a network computes, and older files lack them.
    wanted = [name for name in ours if not name.endswith("num_batches_tracked") or name in given]
    faults = [f"{name} is missing" for name in wanted if name not in given]
    faults += [f"{name} is no layer of it" for name in given if name not in ours]
    faults += [
        f"{name} is {_size(given[name])}, not {_size(ours[name])}"
        for name in wanted
        if name in given and given[name].shape != ours[name].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UserError(f"{where}: weights of another network: {', '.join(faults[:3])}{more}")
    with torch.no_grad():
        for name in wanted:
            ours[name].copy_(given[name])
    if not replaced:
        return "all layers"
    return f"all layers but the last ({', '.join(head)}), which is new: its classes are others"


def head_names(network: nn.Module) -> list[str]:
    """The names of the classifier's parameters, its weight first."""
    head = models.classifier(network)
    last = next(name for name, module in network.named_modules() if module is head)
    return [f"{last}.{name}" for name, _ in head.named_parameters()]


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
