"""An optimizer: descent by the sign of the gradient."""

from collections.abc import Callable
from typing import Any

import torch

from ffcv_r50.optim import OPTIMIZERS, Optimizer


@OPTIMIZERS.register("sign_sgd")
class SignSGD(Optimizer):
    """Each weight moves by the learning rate (Bernstein et al. 2018, arXiv:1802.04434)."""

    gain: float = 1.0
    """Of each step."""

    def build(self, groups: list[dict[str, Any]], *, momentum: float) -> torch.optim.Optimizer:
        """As every optimizer."""
        return Descent(groups, {"lr": 0.0, "gain": self.gain})


class Descent(torch.optim.Optimizer):
    """What it says."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                assert parameter.grad is not None
                parameter.sub_(parameter.grad.sign() * group["lr"] * group["gain"])
