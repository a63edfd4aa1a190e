"""Whether a network takes images of a size: found on the meta device, without data or memory."""

from typing import Any

import torch
from torch import nn

from ffcv_r50 import models
from ffcv_r50.errors import UserError


def check(
    arch: str, num_classes: int, *, batch_size: int, resolution: int, training: bool, **options: Any
) -> None:
    """See that a batch goes through the network.

    Args:
        arch, num_classes, options: as :func:`ffcv_r50.models.build` takes them.
        batch_size: images that batch-norm sees together.
        resolution: side of the images in pixels.
        training: else in evaluation mode.

    Raises:
        UserError: it does not; or there is no such network.
    """
    network = on_meta(arch, num_classes, **options).train(training)
    try:
        with torch.no_grad():
            network(torch.empty(batch_size, 3, resolution, resolution, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        what = f"{batch_size} at a time" if training else "in evaluation"
        raise UserError(
            f"model.arch={arch}: does not take images of {resolution} x {resolution} pixels, "
            f"{what} ({str(error).partition(chr(10))[0]}); change schedule.resolution, "
            "validation.resolution or training.norm_batch_size"
        ) from error


def on_meta(arch: str, num_classes: int, **options: Any) -> nn.Module:
    """The network of :func:`ffcv_r50.models.build` without its numbers.

    Raises:
        UserError: there is no such network.
    """
    try:
        with torch.device("meta"):
            return models.build(arch, num_classes, **options)
    except NotImplementedError:  # RegNets look at a number while they are built
        return models.build(arch, num_classes, **options).to("meta")
