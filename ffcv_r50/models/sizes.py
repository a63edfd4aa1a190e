"""Whether a network takes images of a size: found on the meta device, without data or memory."""

import torch
from torch import nn

from ffcv_r50 import models
from ffcv_r50.config import Model
from ffcv_r50.errors import UserError


def check(
    model: Model, num_classes: int, *, batch_size: int, resolution: int, training: bool
) -> None:
    """See that a batch goes through the network.

    Args:
        model: the settings of the network.
        num_classes: size of its last layer.
        batch_size: images that batch-norm sees together.
        resolution: side of the images in pixels.
        training: else in evaluation mode.

    Raises:
        UserError: it does not; or there is no such network.
    """
    network = on_meta(model, num_classes).train(training)
    try:
        with torch.no_grad():
            network(torch.empty(batch_size, 3, resolution, resolution, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        what = f"{batch_size} at a time" if training else "in evaluation"
        raise UserError(
            f"model.arch={model.arch}: does not take images of {resolution} x {resolution} pixels, "
            f"{what} ({str(error).partition(chr(10))[0]}); change schedule.resolution, "
            "validation.resolution or training.norm_batch_size"
        ) from error


def on_meta(model: Model, num_classes: int) -> nn.Module:
    """The network without its numbers.

    Raises:
        UserError: there is no such network.
    """

    def build() -> nn.Module:
        return models.build(
            model.arch,
            num_classes,
            blurpool=model.blurpool,
            zero_init_residual=model.zero_init_residual,
        )

    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:  # RegNets look at a number while they are built
        return build().to("meta")
