"""How many floating-point operations an image costs, in which part of the network, and how much it
moves through memory.

Counted on the meta device: no data, no memory, no GPU. Convolutions and matrix products count as
operations (by torch's FlopCounterMode), a multiply-add as two; normalisation, activations, pooling
and the optimizer do not, they are limited by memory traffic.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ffcv_r50.config.settings import Model
from ffcv_r50.errors import UserError
from ffcv_r50.models import sizes

NAMES = {"conv1": "stem", "fc": "head"}
"""Parts of a ResNet by their usual names."""


@functools.cache
def count(
    model: Model, num_classes: int, resolution: sizes.Size, *, training: bool
) -> dict[str, int]:
    """Operations for one image, by part of the network.

    Args:
        model: the settings of the network.
        num_classes: size of its last layer.
        resolution: of the image.
        training: forward and backward pass; otherwise the forward pass alone.

    Returns:
        Name of each outermost submodule that computes -> operations, in the order of the network
        (ResNets: stem, layer1 to layer4, head); ``elsewhere`` for those outside of submodules.

    Raises:
        UserError: there is no such network, or it does not take images of this size.
    """
    network = _network(model, num_classes)
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
    )
    with counter, torch.set_grad_enabled(training):
        logits = _forward(network, model, resolution)
        if training:
            logits.sum().backward()
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    root = type(network).__name__
    order = [f"{root}.{name}" for name, _ in network.named_modules() if name]
    parts: dict[str, int] = {}
    outermost: list[str] = []
    for path in order:
        if path in counts and not any(path.startswith(f"{outer}.") for outer in outermost):
            outermost.append(path)
            part = path.split(".")[1]
            parts[NAMES.get(part, part)] = parts.get(NAMES.get(part, part), 0) + counts[path]
    if rest := counter.get_total_flops() - sum(parts.values()):
        parts["elsewhere"] = rest
    return {name: operations for name, operations in parts.items() if operations}


@functools.cache
def written(model: Model, num_classes: int, resolution: sizes.Size) -> int:
    """Numbers that the forward pass of one image writes to memory, where nothing is fused.

    Each operation writes its result once: convolutions, norms, activations, sums, pooling.

    Raises:
        UserError: see :func:`count`.
    """
    network, writes = _network(model, num_classes), _Writes()
    with writes, torch.no_grad():
        _forward(network, model, resolution)
    return writes.numbers


class _Writes(TorchDispatchMode):
    """Counts the elements of all tensors that operations return and do not merely view."""

    numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Carry out ``func`` and count what it writes."""
        found = func(*args, **(kwargs or {}))
        results = found if isinstance(found, tuple) else [found]  # a list is one result: of views
        for declared, result in zip(func._schema.returns, results, strict=True):
            viewed = declared.alias_info is not None and not declared.alias_info.is_write
            if isinstance(result, Tensor) and not viewed:
                self.numbers += result.numel()
        return found


def _network(model: Model, num_classes: int) -> nn.Module:
    network = sizes.on_meta(num_classes=num_classes, **model.network)
    for module in network.modules():
        if hasattr(module, "inplace"):
            # The counter loses track of a part whose input is overwritten.
            module.inplace = False  # type: ignore[assignment]
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # a single image has no statistics at 1 x 1; batch-norm is not counted
    return network


def _forward(network: nn.Module, model: Model, resolution: sizes.Size) -> Tensor:
    height, width = sizes.pair(resolution)
    try:
        logits: Tensor = network(torch.empty(1, 3, height, width, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"model.arch: {model.arch} does not take images of {height} x {width} pixels "
            f"({str(error).splitlines()[0]})"
        ) from error
    return logits


def _convolution_backward(
    grad_out: Sequence[int],
    images: Sequence[int],
    weight: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: Any,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    """Each wanted gradient (of the input, of the weight) costs what the forward pass cost.

    torch 2.15's own formula takes the weight's gradient of a grouped convolution for a dense one:
    32 times too much for a ResNeXt's.
    """
    positions = math.prod((images if transposed else grad_out)[2:])
    forward = 2 * images[0] * positions * math.prod(weight)
    return forward * (output_mask[0] + output_mask[1])
