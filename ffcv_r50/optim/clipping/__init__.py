"""What keeps gradients small, by the name that recipes use.

It is applied once a step, to the sum over all micro-batches and processes, before the optimizer.
"""

from typing import Protocol

from torch import Tensor, nn

from ffcv_r50.registry import Options, Registry


class Clipping(Protocol):
    """Changes the gradients of a step."""

    def __call__(self, gradients: Tensor, norm: Tensor) -> None:
        """Change them in place, by nothing but numbers that all ranks share.

        Args:
            gradients: float32, flat: those of all parameters, whose ``.grad`` are views of it, with
                zeros between them.
            norm: their 2-norm, a scalar on the device.
        """
        ...


class ClippingOptions(Options):
    """The options of a clipping."""

    def build(self, network: nn.Module, head: nn.Module) -> Clipping:
        """The clipping itself.

        Args:
            network: that is trained.
            head: its last layer, the classifier.
        """
        raise NotImplementedError


CLIPPINGS: Registry[ClippingOptions] = Registry("clipping")

from ffcv_r50.optim.clipping import agc, global_norm, none, value  # noqa: E402, F401  # register
