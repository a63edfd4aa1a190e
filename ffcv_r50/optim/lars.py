"""LARS: SGD whose rate follows, layer by layer, from the norms of weights and gradient."""

from typing import Annotated, Any

import torch
from torch import Tensor

from ffcv_r50.optim.momentum import Momentum
from ffcv_r50.optim.optimizer import OPTIMIZERS, Optimizer
from ffcv_r50.registry import Range


@OPTIMIZERS.register("lars")
class Lars(Optimizer):
    """LARS (You et al. 2017, arXiv:1708.03888); weight decay is an L2 penalty."""

    trust: Annotated[float, Range(above=0)] = 0.001
    """The trust coefficient: about how far a layer's weights move in a step of rate 1, as a share
    of their norm."""
    eps: Annotated[float, Range(at_least=0)] = 1e-8
    """Added to the denominator of the trust ratio."""
    nesterov: bool = False
    """Nesterov momentum."""

    def build(self, groups: list[dict[str, Any]], *, momentum: float) -> torch.optim.Optimizer:
        """See :class:`LayerwiseRates`."""
        return LayerwiseRates(
            groups, momentum=momentum, nesterov=self.nesterov, trust=self.trust, eps=self.eps
        )


class LayerwiseRates(Momentum):
    """SGD with momentum on ``trust * |w| / (|g| + decay * |w| + eps) * (g + decay * w)``.

    Each parameter of the groups that decay is a layer w with its gradient g, whatever the decay is at
    a step; where a norm is 0, the factor is 1. The other groups (norms and biases) get plain momentum
    SGD, as in NVIDIA's MLPerf submissions. As in timm and torch's SGD the rate stands outside of the
    momentum; in the paper and NVIDIA's it is inside, which is the same while it does not change.
    """

    def directions(
        self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]
    ) -> list[Tensor]:
        """The gradients of the penalised loss, times the trust ratios."""
        if not group["decays"]:
            return gradients
        decay = group["weight_decay"]
        of_weights = torch.stack(torch._foreach_norm(weights))
        of_gradients = torch.stack(torch._foreach_norm(gradients))
        ratios = group["trust"] * of_weights / (of_gradients + decay * of_weights + group["eps"])
        ratios = torch.where((of_weights > 0) & (of_gradients > 0), ratios, 1.0)
        directions = torch._foreach_add(gradients, weights, alpha=decay)
        torch._foreach_mul_(directions, ratios.unbind())
        return list(directions)
