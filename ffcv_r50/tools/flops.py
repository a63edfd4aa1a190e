"""How many floating-point operations an image costs, and in which part of the network.

Counted by torch's FlopCounterMode on the meta device: no data, no memory, no GPU. Convolutions
and matrix products count, a multiply-add as two operations; normalisation, activations, pooling
and the optimizer do not (they are limited by memory traffic).
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ffcv_r50.config.settings import Model
from ffcv_r50.errors import UserError
from ffcv_r50.models import sizes

NAMES = {"conv1": "stem", "fc": "head"}
"""Parts of a ResNet by their usual names."""


@functools.cache
def count(model: Model, num_classes: int, resolution: int, *, training: bool) -> dict[str, int]:
    """Operations for one image, by part of the network.

    Args:
        model: the settings of the network.
        num_classes: size of its last layer.
        resolution: side of the image in pixels.
        training: forward and backward pass; otherwise the forward pass alone.

    Returns:
        Name of each outermost submodule that computes -> operations, in the order of the network
        (ResNets: stem, layer1 to layer4, head); ``elsewhere`` for those outside of submodules.

    Raises:
        UserError: there is no such network, or it does not take images of this size.
    """
    network = sizes.on_meta(num_classes=num_classes, **model.network)
    for module in network.modules():
        if hasattr(module, "inplace"):
            # The counter loses track of a part whose input is overwritten.
            module.inplace = False  # type: ignore[assignment]
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # a single image has no statistics at 1 x 1; batch-norm is not counted
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
    )
    try:
        images = torch.empty(1, 3, resolution, resolution, device="meta")
        with counter, torch.set_grad_enabled(training):
            logits = network(images)
            if training:
                logits.sum().backward()
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"model.arch: {model.arch} does not take images of {resolution} x {resolution} pixels "
            f"({str(error).splitlines()[0]})"
        ) from error
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
