"""Adaptive gradient clipping (Brock et al. 2021, arXiv:2102.06171)."""

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ffcv_r50.optim.clipping import CLIPPINGS, Clipping, ClippingOptions
from ffcv_r50.registry import Range


@CLIPPINGS.register("agc")
class AdaptiveClipping(ClippingOptions):
    """Scales the gradient of each unit (row of weights) to at most a share of the unit's norm. The last
    layer is left alone, as in the paper."""

    at: Annotated[float, Range(above=0)] = 0.01
    """Largest norm of a unit's gradient, as a share of the norm of its weights."""
    eps: Annotated[float, Range(above=0)] = 1e-3
    """Norms of weights count as at least this, so that units that begin at 0 can leave it."""

    def build(self, network: nn.Module, head: nn.Module) -> Clipping:
        """See :class:`UnitwiseClipping`."""
        spared = {id(parameter) for parameter in head.parameters()}
        clipped = [p for p in network.parameters() if p.requires_grad and id(p) not in spared]
        return UnitwiseClipping(clipped, self.at, self.eps)


class UnitwiseClipping:
    """timm's ``adaptive_clip_grad``, for many parameters at once.

    A unit is a slice along the first dimension; a parameter of one dimension (a bias, a norm's scale)
    is one unit.

    Args:
        parameters: whose gradients are clipped.
        at: largest norm of a unit's gradient, as a share of the norm of its weights.
        eps: least norm of weights.
    """

    def __init__(self, parameters: list[nn.Parameter], at: float, eps: float) -> None:
        self._parameters = parameters
        self._at = at
        self._eps = eps

    @torch.no_grad()
    def __call__(self, gradients: Tensor, norm: Tensor) -> None:
        """See :class:`~ffcv_r50.optim.clipping.Clipping`."""
        trained = [parameter for parameter in self._parameters if parameter.grad is not None]
        if not trained:  # but the last layer
            return
        own: list[Any] = [parameter.grad for parameter in trained]
        of_weights = [_unit_norms(parameter) for parameter in trained]
        of_gradients = [_unit_norms(gradient) for gradient in own]
        largest = _flat(of_weights).clamp(min=self._eps) * self._at
        lengths = _flat(of_gradients)
        factors = torch.where(lengths < largest, 1.0, largest / lengths.clamp(min=1e-6))
        parts = factors.split([norms.numel() for norms in of_weights])
        scales = [part.view_as(norms) for part, norms in zip(parts, of_weights, strict=True)]
        torch._foreach_mul_(own, scales)


def _unit_norms(tensor: Tensor) -> Tensor:
    """Of each unit, in a shape that multiplies ``tensor``."""
    inside = tuple(range(1, tensor.dim()))
    return torch.linalg.vector_norm(tensor, dim=inside or None, keepdim=True)


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
