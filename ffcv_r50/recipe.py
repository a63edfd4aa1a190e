"""What a recipe means: the values that hold at epoch e and step s, and who computes what."""

from typing import NamedTuple

from ffcv_r50 import config as configuration
from ffcv_r50.config import Config
from ffcv_r50.errors import UserError
from ffcv_r50.keyframes import Keyframes

__all__ = ["Keyframes", "Plan", "learning_rate", "plan", "resolution"]


class Plan(NamedTuple):
    """How one optimizer step is shared among the processes."""

    micro_batch_size: int
    """Images of one forward and backward pass: what batch-norm computes its statistics over."""
    micro_batches: int
    """Such passes of each process, accumulated before the optimizer steps."""


def learning_rate(config: Config, epoch: int, step: int, steps_per_epoch: int) -> float:
    """The learning rate of an optimizer step.

    Args:
        config: the configuration.
        epoch: counted from 0.
        step: within the epoch, counted from 0.
        steps_per_epoch: optimizer steps in each epoch.
    """
    return config.schedule.lr.at(epoch + step / steps_per_epoch)


def resolution(config: Config, epoch: int) -> int:
    """The side in pixels of the training images in an epoch: a multiple of 32."""
    return configuration.resolution_at(config.schedule.resolution, epoch)


def plan(config: Config, world_size: int) -> Plan:
    """Share the normalisation batches of a step among ``world_size`` processes.

    Raises:
        UserError: they cannot be shared evenly, or there are fewer of them than processes.
    """
    size = config.norm_batch_size
    batches = config.training.batch_size // size
    if batches % world_size == 0:
        return Plan(size, batches // world_size)
    works = [str(n) for n in range(1, batches + 1) if batches % n == 0]
    listed = " or ".join(filter(None, [", ".join(works[:-1]), works[-1]]))
    shares = (
        "sharing one among several processes is not supported yet"
        if world_size > batches
        else "they do not divide evenly"
    )
    raise UserError(
        f"{world_size} processes for {batches} normalisation batches a step "
        f"(training.batch_size {config.training.batch_size} / training.norm_batch_size {size}): "
        f"{shares}; start {listed} process{'es' * (works != ['1'])}, or pass a smaller "
        "--training.norm_batch_size (the run then departs from its recipe)"
    )
