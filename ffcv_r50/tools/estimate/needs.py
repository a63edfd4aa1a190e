"""The phases of a run on a machine, and what else it needs: cores, disk, memory, patience."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ffcv_r50 import optim, recipe
from ffcv_r50.config.settings import Config
from ffcv_r50.errors import UserError
from ffcv_r50.models import sizes
from ffcv_r50.tools.estimate.hardware import Machine
from ffcv_r50.tools.estimate.work import Work, work
from ffcv_r50.training.averages import AverageOptions

HOURS = {"hour": 1, "day": 24, "week": 168}
KEPT = 3
"""Checkpoints that a run folder holds: the last, the one before and the best."""


@dataclass(frozen=True)
class Images:
    """Of a dataset."""

    training: int
    """That the steps of an epoch take."""
    stored: int
    """In the training set."""
    validation: int
    """0 where they are not counted."""
    classes: int


class Kind(NamedTuple):
    """Images that cost the same."""

    name: str
    epochs: int
    """That have them."""
    images: int
    """In all these epochs."""
    each: Work
    """What one costs."""
    side: int | None
    """At which loading them was measured, if it was."""


@dataclass(frozen=True)
class Phase:
    """Images that cost the same, on a machine."""

    kind: Kind
    gpu_rate: float
    """Images a second that the GPUs take."""
    core_rate: float | None
    """Images a second that one core decodes; None where it was not measured."""
    cores: int | None
    """That decode; None for as many as it takes."""

    @property
    def loader_waits(self) -> bool:
        """Whether the GPUs are the slower side."""
        return None in (self.cores, self.core_rate) or self.gpu_rate <= self._loaded

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.gpu_rate if self.loader_waits else self._loaded

    @property
    def seconds(self) -> float:
        """Of all its epochs."""
        return self.kind.images / self.rate

    @property
    def _loaded(self) -> float:
        assert self.cores is not None
        assert self.core_rate is not None
        return self.cores * self.core_rate


def kinds(config: Config, images: Images) -> Iterator[Kind]:
    """What a run computes: training by resolution, statistics for averages, evaluation.

    Args:
        config: its settings.
        images: of its dataset.
    """
    model, classes = config.model, images.classes
    epochs = range(config.training.epochs)
    by_side: dict[int, list[int]] = {}
    for epoch in epochs:
        by_side.setdefault(recipe.resolution(config, epoch), []).append(epoch)
    for side, those in by_side.items():
        each = work(model, classes, recipe.seen_size(config, side), training=True)
        yield Kind(f"training {side} px", len(those), len(those) * images.training, each, side)
    for side, those in by_side.items():
        seen = [sum(_recomputed(config, epoch, images.training)) for epoch in those]
        if count := sum(map(bool, seen)):
            each = work(model, classes, recipe.seen_size(config, side), training=False)
            yield Kind(f"statistics {side} px", count, sum(seen), each, side)
    if images.validation:
        side = config.validation.resolution
        each = work(model, classes, side, training=False)
        each = each.times(2 if config.validation.tta == "flip" else 1)
        networks = sum(1 + len(_averages(config, epoch)) for epoch in epochs)
        yield Kind(f"evaluation {side} px", len(epochs), networks * images.validation, each, None)


def _averages(config: Config, epoch: int) -> list[AverageOptions]:
    """Those that are evaluated at the end of an epoch."""
    if not recipe.evaluates_averages(config, epoch):
        return []
    return [average for average in config.averages if epoch + 1 >= average.begins]


def _recomputed(config: Config, epoch: int, most: int) -> list[int]:
    """Images that batch-norm's statistics are computed over anew, for each average that needs it."""
    batch = config.training.batch_size
    each = [average.recomputed_over for average in _averages(config, epoch)]
    return [min(-(-images // batch) * batch, most) for images in each]


def phases(config: Config, images: Images, machine: Machine, cores: int | None) -> list[Phase]:
    """A run on a machine, kind of image by kind of image.

    Args:
        config: its settings.
        images: of its dataset.
        machine: where it runs.
        cores: that decode; None for as many as the GPUs need.
    """
    return [
        Phase(
            kind,
            1 / machine.seconds(kind.each),
            None if kind.side is None else machine.loader_rate(kind.side),
            cores,
        )
        for kind in kinds(config, images)
    ]


def checkpoint_bytes(config: Config, classes: int) -> tuple[int, int]:
    """Bytes of one checkpoint and of all the weights that the finished run leaves."""
    network = sizes.on_meta(num_classes=classes, **config.model.network)
    groups = optim.parameter_groups(network, config.training.decay_norm_and_bias)
    optimizer = config.optimizer.build(groups, momentum=config.training.momentum)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # Each average is such a network again.
    tensors = network.state_dict().values()
    weights = (1 + len(config.averages)) * sum(t.numel() * t.element_size() for t in tensors)
    states = [t for state in optimizer.state.values() for t in state.values()]
    kept = sum(t.numel() * t.element_size() for t in states if isinstance(t, torch.Tensor))
    return weights + kept, weights


def checkpoint_hours(config: Config, steps: int, hours: float) -> float:
    """Between two checkpoints: ``checkpoint.every``, and each epoch's end.

    Args:
        config: the settings.
        steps: of the run.
        hours: that it takes.
    """
    number, unit = config.checkpoint.interval
    within = number / 60 if unit == "minutes" else number * hours / steps
    return min(within, hours / config.training.epochs)


class Preempted(NamedTuple):
    """What is to be expected of machines that are taken away."""

    times: float
    """How often."""
    lost_hours: float
    """Each time."""
    hours: float
    """Of the run, from its start to its end."""


def preempted(text: str, hours: float, lost_hours: float) -> Preempted:
    """A run that is stopped now and then and continues.

    What is trained again may be stopped again, so of each hour that passes ``rate * lost_hours`` are
    lost: the run takes hours / (1 - rate * lost_hours).

    Args:
        text: how often, such as ``2/week``.
        hours: of the run, undisturbed.
        lost_hours: each time.

    Raises:
        UserError: it is said in another way, or the run would not come to an end.
    """
    found = re.fullmatch(rf"(\d+(?:\.\d+)?)/({'|'.join(HOURS)})", text)
    if not found:
        raise UserError(
            f"command line: --preemptions: expected a number a week, day or hour, such as 2/week, "
            f"got '{text}'"
        )
    rate = float(found[1]) / HOURS[found[2]]
    if rate * lost_hours >= 1:
        raise UserError(
            f"command line: --preemptions={text}: each costs {60 * lost_hours:.1f} minutes, so the "
            "run would never end; save more often (checkpoint.every), or give a smaller "
            "--restart-minutes"
        )
    total = hours / (1 - rate * lost_hours)
    return Preempted(rate * total, lost_hours, total)
