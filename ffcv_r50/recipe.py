"""What a recipe means: the values that hold at epoch e and step s, and who computes what."""

from typing import NamedTuple

from ffcv_r50.config import settings
from ffcv_r50.config.settings import Config
from ffcv_r50.errors import UserError
from ffcv_r50.training.protocols import Step
from ffcv_r50.training.transforms import TRANSFORMS, BatchOptions


class Plan(NamedTuple):
    """How one optimizer step is shared among the processes."""

    micro_batch_size: int
    """Images of one forward and backward pass of one process."""
    micro_batches: int
    """Such passes of each process, accumulated before the optimizer steps."""
    group_size: int = 1
    """Neighbouring processes whose images batch-norm computes its statistics over together."""


def values(config: Config, epoch: float) -> dict[str, float]:
    """What may change from step to step, where it has a row in the schedule and where it has none.

    Args:
        config: the settings.
        epoch: counted from 0, a step of it as a fraction.

    Returns:
        By the names of the schedule's rows: ``lr``, ``momentum``, ``weight_decay``, ... ; all but
        ``resolution``, which holds for an epoch.
    """
    rows = config.schedule.rows
    return {
        name: rows[name].at(epoch) if name in rows else getattr(config.training, name)
        for name in type(config.schedule).model_fields
        if name != "resolution"
    }


def step(config: Config, epoch: int, number: int, steps_per_epoch: int) -> Step:
    """An optimizer step.

    Args:
        config: the settings.
        epoch: counted from 0.
        number: of the step within the epoch, counted from 0.
        steps_per_epoch: optimizer steps in each epoch.
    """
    at = epoch + number / steps_per_epoch
    return Step(config.training.seed, epoch * steps_per_epoch + number, at, values(config, at))


def resolution(config: Config, epoch: int) -> int:
    """The side in pixels of the training images in an epoch."""
    return settings.resolution_at(config.schedule.resolution, epoch)


def seen_size(config: Config, side: int) -> tuple[int, int]:
    """Height and width of the training images that the network sees, of those decoded at a side."""
    size = side, side
    for options in config.augment:
        if isinstance(options, BatchOptions):
            size = options.size_after(*size)
    return size


def seen_sizes(config: Config) -> dict[int, tuple[int, int]]:
    """What :func:`seen_size` says of each side that a run decodes at."""
    sides = (resolution(config, epoch) for epoch in range(config.training.epochs))
    return {side: seen_size(config, side) for side in sides}


def evaluates_averages(config: Config, epoch: int) -> bool:
    """Whether the averages are evaluated after an epoch, beside the network."""
    done = epoch + 1
    return done % config.validation.averages_every == 0 or done == config.training.epochs


def share_of_steps(config: Config, plan: Plan, steps: int, processes: str) -> str:
    """How the epochs are cut into steps and the steps into micro-batches, in a line.

    Args:
        config: the settings.
        plan: of this number of processes.
        steps: in each epoch.
        processes: how many and of what kind, such as ``8 cuda processes``.
    """
    training = config.training
    return (
        f"{training.epochs} epochs of {steps:,} steps; batch {training.batch_size:,} = {processes} "
        f"x {plan.micro_batches} micro-batches x {plan.micro_batch_size} images; batch-norm over "
        f"{config.norm_batch_size}"
    )


def plan(config: Config, world_size: int) -> Plan:
    """Share the normalisation batches of a step among ``world_size`` processes.

    Where there are more processes than such batches, equally many neighbouring processes share each.

    Raises:
        UserError: they cannot be shared evenly; names numbers of processes that can.
    """
    found = _plan(config, world_size)
    for options in config.augment:
        together = options.together if isinstance(options, BatchOptions) else 1
        if found.micro_batch_size % together:
            raise UserError(
                f"augment: {TRANSFORMS.name_of(options)} needs micro-batches of a multiple of "
                f"{together} images, on {world_size} process{'es' * (world_size > 1)} they have "
                f"{found.micro_batch_size}; choose another number of processes or "
                "--training.norm_batch_size"
            )
    return found


def _plan(config: Config, world_size: int) -> Plan:
    size = config.norm_batch_size
    batches = config.training.batch_size // size
    if batches % world_size == 0:
        return Plan(size, batches // world_size)
    group_size, left_over = divmod(world_size, batches)
    if group_size and not left_over and size % group_size == 0:
        return Plan(size // group_size, 1, group_size)
    works = [n for n in range(1, batches + 1) if batches % n == 0]
    works += [batches * n for n in range(2, size + 1) if size % n == 0]
    near = [n for n in works if n < world_size][-1:] + [n for n in works if n > world_size][:1]
    raise UserError(
        f"{world_size} processes for {batches} normalisation batches a step "
        f"(training.batch_size {config.training.batch_size} / training.norm_batch_size {size}): "
        f"they do not divide evenly; start {' or '.join(map(str, near))} "
        f"process{'es' * (near != [1])}, or pass another --training.norm_batch_size (the run then "
        "departs from its recipe)"
    )
