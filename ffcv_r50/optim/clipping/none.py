"""No clipping."""

from torch import Tensor, nn

from ffcv_r50.optim.clipping import CLIPPINGS, Clipping, ClippingOptions


@CLIPPINGS.register("none")
class Unclipped(ClippingOptions):
    """Gradients stay as they are."""

    def build(self, network: nn.Module, head: nn.Module) -> Clipping:
        """See :func:`unclipped`."""
        return unclipped


def unclipped(gradients: Tensor, norm: Tensor) -> None:
    """Does nothing."""
