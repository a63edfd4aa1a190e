"""The network itself, with batch-norm statistics computed anew before each evaluation."""

from typing import Any

from torch import nn

from ffcv_r50.training.averages import AVERAGES, Recomputed
from ffcv_r50.training.protocols import Average, Step


@AVERAGES.register("precise_bn")
class PreciseBatchNorm(Recomputed):
    """The newest weights with precise batch-norm statistics (Wu and Johnson 2021, arXiv:2105.07576):
    means over many batches at those weights, not running averages over weights that changed."""

    def build(self, network: nn.Module, steps_per_epoch: int) -> Average:
        """See :class:`Newest`."""
        return Newest(network)


class Newest:
    """The weights after the newest step; they are copied when somebody looks.

    Args:
        network: to hold the copy; nobody else's.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network.requires_grad_(False)
        self._source: nn.Module | None = None

    def update(self, network: nn.Module, step: Step) -> None:
        """See :class:`~ffcv_r50.training.protocols.Average`."""
        self._source = network

    def network(self) -> nn.Module:
        """See :class:`~ffcv_r50.training.protocols.Average`."""
        if self._source is not None:
            self._network.load_state_dict(self._source.state_dict())
            self._source = None  # the statistics that are computed now stay until the next step
        return self._network

    def state_dict(self) -> dict[str, Any]:
        """See :class:`~ffcv_r50.training.protocols.Average`."""
        return {"network": self.network().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`~ffcv_r50.training.protocols.Average`."""
        self._network.load_state_dict(state["network"])
