"""Whether a network takes images of a size, and trains in the same way on any number of processes.

Found on the meta device, without data or memory.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from ffcv_r50 import models
from ffcv_r50.errors import UserError
from ffcv_r50.models.dropout import draw_by_position

META = torch.device("meta")
PRIME = 251
"""Images that a network is given where it may be more than one: dropout on tables, which have another
number of rows, is told from dropout on images by it."""

Size = int | tuple[int, int]
"""Of images in pixels: their side, or height and width."""


def check(
    arch: str,
    num_classes: int,
    *,
    batch_size: int,
    resolution: Size,
    training: bool,
    **options: Any,
) -> None:
    """See that a batch goes through the network.

    Args:
        arch, num_classes, options: as :func:`ffcv_r50.models.build` takes them.
        batch_size: images that batch-norm sees together.
        resolution: of the images.
        training: else in evaluation mode.

    Raises:
        UserError: it does not; or there is no such network; or in training it draws from a generator
            of its process, changes what is not batch-norm's, or gives something else than logits.
    """
    network = on_meta(arch, num_classes, **options).train(training)
    images = PRIME if batch_size > 1 else 1
    draw_by_position(network, 0, META).begin(0, range(images))
    before, (height, width) = _foreign_state(network), pair(resolution)
    try:
        with torch.no_grad(), _NoRandomNumbers(arch):
            logits = network(torch.empty(images, 3, height, width, device=META))
    except (RuntimeError, AssertionError, ValueError) as error:
        what = f"{batch_size} at a time" if training else "in evaluation"
        raise UserError(
            f"model.arch={arch}: does not take images of {height} x {width} pixels, "
            f"{what} ({str(error).partition(chr(10))[0]}); change schedule.resolution, "
            "validation.resolution or training.norm_batch_size"
        ) from error
    if changed := [name for name, seen in _foreign_state(network).items() if seen != before[name]]:
        raise UserError(
            f"model.arch={arch}: its {changed[0]} changes in training, which could depend on the "
            "number of processes; choose another network"
        )
    if not isinstance(logits, Tensor) or logits.shape != (images, num_classes):
        raise UserError(
            f"model.arch={arch}: gives something else than one logit for each class; choose another "
            "network"
        )


def pair(size: Size) -> tuple[int, int]:
    """Height and width."""
    return size if isinstance(size, tuple) else (size, size)


class _NoRandomNumbers(TorchDispatchMode):
    """Refuses operations that draw from torch's generators."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        self._arch = arch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
            if given.get("dropout_p", 1.0) > 0:  # attention may drop, and has the tag in any case
                raise UserError(
                    f"model.arch={self._arch}: draws random numbers ({func.overloadpacket.__name__}) "
                    "that depend on the number of processes; choose another network"
                )
        return func(*args, **kwargs)


def _foreign_state(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Which tensor each buffer is that is not batch-norm's, and how often it was written."""
    return {
        f"{type(module).__name__}.{name}": (id(buffer), buffer._version)
        for module in network.modules()
        if not isinstance(module, _BatchNorm)
        for name, buffer in module.named_buffers(recurse=False)
    }


def on_meta(arch: str, num_classes: int, **options: Any) -> nn.Module:
    """The network of :func:`ffcv_r50.models.build` without its numbers.

    Raises:
        UserError: there is no such network.
    """
    try:
        with META:
            return models.build(arch, num_classes, **options)
    except RuntimeError:  # some look at a number while they are built
        return models.build(arch, num_classes, **options).to(META)
