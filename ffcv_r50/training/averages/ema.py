"""An exponential moving average of the weights."""

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ffcv_r50.registry import Range
from ffcv_r50.training.averages import AVERAGES, AverageOptions
from ffcv_r50.training.protocols import Average, Step


@AVERAGES.register("ema")
class Ema(AverageOptions):
    """Weights and batch-norm statistics, averaged over the last steps."""

    half_life: Annotated[float, Range(above=0)]
    """Epochs until a step counts half as much as the newest, so it means the same at any batch size
    (torchvision's V2 recipe has about 16, Mosaic's ResNets about 0.16)."""

    def build(self, network: nn.Module, steps_per_epoch: int) -> Average:
        """See :class:`ExponentialMovingAverage`."""
        return ExponentialMovingAverage(network, 0.5 ** (1 / (self.half_life * steps_per_epoch)))


class ExponentialMovingAverage:
    """The weighted mean over all steps so far, each counting ``decay`` times the next one.

    Weighted by what there is: after the first step it is that step's weights, not mostly the random
    ones from before it (Kingma and Ba 2015, section 3, correct Adam's averages likewise). Integers
    (batch-norm's count of steps) are the newest.

    Args:
        network: to hold the average; nobody else's.
        decay: above 0, below 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._network = network.requires_grad_(False)
        self._decay = decay
        self._steps = 0

    def update(self, network: nn.Module, step: Step) -> None:
        """See :class:`~ffcv_r50.training.protocols.Average`."""
        self._steps += 1
        # Of the weights 1 + d + ... + d^(t-1) = (1 - d^t) / (1 - d) the newest has 1.
        newest = (1 - self._decay) / (1 - self._decay**self._steps)
        ours: list[Tensor] = []
        theirs: list[Tensor] = []
        with torch.no_grad():
            for average, tensor in zip(
                self._network.state_dict().values(), network.state_dict().values(), strict=True
            ):
                if tensor.is_floating_point():
                    ours.append(average)
                    theirs.append(tensor)
                else:
                    average.copy_(tensor)
            torch._foreach_lerp_(ours, theirs, newest)

    def network(self) -> nn.Module:
        """See :class:`~ffcv_r50.training.protocols.Average`."""
        return self._network

    def state_dict(self) -> dict[str, Any]:
        """See :class:`~ffcv_r50.training.protocols.Average`."""
        return {"network": self._network.state_dict(), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`~ffcv_r50.training.protocols.Average`."""
        self._network.load_state_dict(state["network"])
        self._steps = state["steps"]
