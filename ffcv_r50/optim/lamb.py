"""LAMB: Adam whose rate follows, layer by layer, from the norms of weights and update."""

from collections.abc import Callable
from typing import Annotated, Any

import torch

from ffcv_r50.optim.optimizer import OPTIMIZERS, Optimizer, with_gradients
from ffcv_r50.registry import Range


@OPTIMIZERS.register("lamb")
class Lamb(Optimizer):
    """LAMB (You et al. 2020, arXiv:1904.00962), without gradient clipping; its first beta is the
    momentum."""

    beta2: Annotated[float, Range(at_least=0, below=1)] = 0.999
    """Decay of the running average of squared gradients."""
    eps: Annotated[float, Range(above=0)] = 1e-6
    """Added to the denominator."""

    def build(self, groups: list[dict[str, Any]], *, momentum: float) -> torch.optim.Optimizer:
        """See :class:`LayerwiseAdam`."""
        return LayerwiseAdam(groups, betas=(momentum, self.beta2), eps=self.eps)


class LayerwiseAdam(torch.optim.Optimizer):
    """Steps along ``|w| / |u| * u`` with ``u = m / (sqrt(v) + eps) + decay * w``.

    m and v are Adam's averages of the gradient and its square, corrected for their bias as Adam does.
    Each parameter w of the groups that decay is a layer, whatever the decay is at a step; where a norm
    is 0, the factor is 1. The other groups (norms and biases) step along u, as in timm's and NVIDIA's.

    Not fused, so a gradient scaler leaves out the whole of a step that overflowed.

    Args:
        groups: see :func:`ffcv_r50.optim.parameter_groups`.
        betas: decay of m and v; the first one is set before each step.
        eps: added to the denominator.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "layerwise": True})
        for group in self.param_groups:
            for parameter in group["params"]:
                # Of each parameter: what is kept of an optimizer is its tensors, not its groups.
                self.state[parameter]["step"] = torch.tensor(0.0)
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every group."""
        for group, weights, gradients in with_gradients(self):
            states = [self.state[weight] for weight in weights]
            means = [state["exp_avg"] for state in states]
            squares = [state["exp_avg_sq"] for state in states]
            for state in states:
                state["step"] += 1
            number, (beta1, beta2) = states[0]["step"].item(), group["betas"]
            torch._foreach_lerp_(means, gradients, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_div_(roots, (1 - beta2**number) ** 0.5)
            torch._foreach_add_(roots, group["eps"])
            updates = torch._foreach_div(means, 1 - beta1**number)
            torch._foreach_div_(updates, roots)
            if group["decays"]:
                torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
                of_weights = torch.stack(torch._foreach_norm(weights))
                of_updates = torch.stack(torch._foreach_norm(updates))
                ratios = torch.where(
                    (of_weights > 0) & (of_updates > 0), of_weights / of_updates, 1.0
                )
                torch._foreach_mul_(updates, ratios.unbind())
            torch._foreach_add_(weights, updates, alpha=-group["lr"])
