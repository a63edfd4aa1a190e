"""Stochastic weight averaging: the plain mean of the weights at the ends of some epochs."""

from typing import Annotated, Any

import torch
from torch import nn

from ffcv_r50.registry import Range
from ffcv_r50.training.averages import AVERAGES, Recomputed
from ffcv_r50.training.protocols import Average, Step


@AVERAGES.register("swa")
class Swa(Recomputed):
    """The mean of the weights at points of the run (Izmailov et al. 2018, arXiv:1803.05407), with
    batch-norm statistics recomputed for it. The rate there is `schedule.lr`'s."""

    start: Annotated[float, Range(at_least=0)]
    """Epochs before the averaging; the first weights that count are those a period later."""
    period: Annotated[float, Range(above=0)] = 1.0
    """Epochs between the points."""

    @property
    def begins(self) -> float:
        """See :class:`~ffcv_r50.training.averages.AverageOptions`."""
        return self.start + self.period

    def build(self, network: nn.Module, steps_per_epoch: int) -> Average:
        """See :class:`StochasticWeightAverage`."""
        start, period = (round(epochs * steps_per_epoch) for epochs in (self.start, self.period))
        return StochasticWeightAverage(network, start, max(period, 1))


class StochasticWeightAverage:
    """The mean over the weights after steps ``start + period``, ``start + 2 period``, ...

    Args:
        network: to hold the average; nobody else's.
        start: steps that are left out.
        period: steps from one point to the next.
    """

    def __init__(self, network: nn.Module, start: int, period: int) -> None:
        self._network = network.requires_grad_(False)
        self._start = start
        self._period = period
        self._points = 0

    def update(self, network: nn.Module, step: Step) -> None:
        """See :class:`~ffcv_r50.training.protocols.Average`."""
        done = step.number + 1 - self._start
        if done <= 0 or done % self._period:
            return
        self._points += 1
        ours, theirs = self._network.state_dict(), network.state_dict()
        with torch.no_grad():
            for name, tensor in theirs.items():
                if tensor.is_floating_point():
                    ours[name].lerp_(tensor, 1 / self._points)
                else:
                    ours[name].copy_(tensor)

    def network(self) -> nn.Module | None:
        """See :class:`~ffcv_r50.training.protocols.Average`."""
        return self._network if self._points else None

    def state_dict(self) -> dict[str, Any]:
        """See :class:`~ffcv_r50.training.protocols.Average`."""
        return {"network": self._network.state_dict(), "points": self._points}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`~ffcv_r50.training.protocols.Average`."""
        self._network.load_state_dict(state["network"])
        self._points = state["points"]
