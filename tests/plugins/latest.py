"""An average over a single step: the network itself, which is what a test can compare with."""

from typing import Any

from torch import nn

from ffcv_r50.training.averages import AVERAGES, AverageOptions
from ffcv_r50.training.protocols import Average, Step


@AVERAGES.register("latest")
class Latest(AverageOptions):
    """The weights after the newest step."""

    def build(self, network: nn.Module, steps_per_epoch: int) -> Average:
        """As every average."""
        return Copy(network)


class Copy:
    """A copy that keeps up."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def update(self, network: nn.Module, step: Step) -> None:
        """Copy."""
        self._network.load_state_dict(network.state_dict())

    def network(self) -> nn.Module:
        """The copy."""
        return self._network

    def state_dict(self) -> dict[str, Any]:
        """The copy's."""
        return {"network": self._network.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The copy's."""
        self._network.load_state_dict(state["network"])
