"""Second sets of weights that follow the network, by the names that recipes use.

An average is a :class:`~ffcv_r50.training.protocols.Average`. It is updated after each optimizer step,
is part of the checkpoint, and is evaluated beside the network itself, after each epoch or every few.
"""

from typing import Annotated

from torch import nn

from ffcv_r50.registry import Options, Range, Registry
from ffcv_r50.training.protocols import Average

NETWORK = "network"
"""What the trained network is called among its averages."""


class AverageOptions(Options):
    """The options of an average."""

    @property
    def begins(self) -> float:
        """Epochs until there is anything in it."""
        return 0.0

    @property
    def recomputed_over(self) -> int:
        """Training images that batch-norm statistics are computed over anew before each evaluation;
        with 0 the average has its own."""
        return 0

    def build(self, network: nn.Module, steps_per_epoch: int) -> Average:
        """The average itself.

        Args:
            network: a copy of its own, as it is before the first step.
            steps_per_epoch: optimizer steps; the unit of every setting is the epoch.
        """
        raise NotImplementedError


class Recomputed(AverageOptions):
    """Of an average whose batch-norm statistics are computed anew each time it is evaluated."""

    images: Annotated[int, Range(at_least=1)] = 16_384
    """Training images that batch-norm statistics are recomputed over, rounded up to whole steps and
    at most an epoch: the first of the epoch just trained, as it showed them."""

    @property
    def recomputed_over(self) -> int:
        """See :class:`AverageOptions`."""
        return self.images


AVERAGES: Registry[AverageOptions] = Registry("average")

from ffcv_r50.training.averages import ema, precise_bn, swa  # noqa: E402, F401  # register themselves
