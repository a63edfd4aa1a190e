"""Second sets of weights that follow the network, by the names that recipes use.

An average is a :class:`~ffcv_r50.training.protocols.Average`. It is updated after each optimizer step,
is part of the checkpoint, and is evaluated after each epoch beside the network itself.
"""

from torch import nn

from ffcv_r50.registry import Options, Registry
from ffcv_r50.training.protocols import Average


class AverageOptions(Options):
    """The options of an average."""

    def build(self, network: nn.Module, steps_per_epoch: int) -> Average:
        """The average itself.

        Args:
            network: a copy of its own, as it is before the first step.
            steps_per_epoch: optimizer steps; the unit of every setting is the epoch.
        """
        raise NotImplementedError


AVERAGES: Registry[AverageOptions] = Registry("average")

from ffcv_r50.training.averages import ema  # noqa: E402, F401  # registers itself
