"""Sharpness-aware minimisation: steps by the gradient at the worst weights nearby.

Foret et al. 2021 (arXiv:2010.01412), equation 2 with p = 2. The gradient that says where the worst
weights are is the one over the whole batch of the step. In the paper's experiments, and in Composer,
each accelerator climbs by the gradient of its own share (m-sharpness): another method on each number
of processes.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Annotated

import torch
from torch import Tensor

from ffcv_r50.keyframes import Varying
from ffcv_r50.registry import Options, Range
from ffcv_r50.training.protocols import Step

EPSILON = 1e-12
"""Added to the gradient's norm, as Composer's."""


class Sam(Options):
    """Sharpness-aware minimisation (Foret et al. 2021, arXiv:2010.01412), with any optimizer."""

    rho: Annotated[Varying, Range(at_least=0)] = Varying(0.0)
    """How far from the weights the gradient of a step is taken, up along the gradient at the weights;
    0 is plain training, the paper has 0.05, Mosaic's recipes 0.5. Such a step has two forward and backward
    passes, the second one over the same images, which stay in memory between them (as bytes, at 224 px
    0.15 MB for each of a process's images of the step; as float32, 0.6 MB, where images are mixed or
    erased), beside a copy of the weights."""
    interval: Annotated[int, Range(at_least=1)] = 1
    """In every so many steps; the others are plain ones. Mosaic has 10 or 5."""

    def radius(self, step: Step) -> float:
        """:attr:`rho` in this step; 0 where it is a plain one."""
        return 0.0 if (step.number + 1) % self.interval else self.rho.at(step.epoch)


PLAIN = Sam()
"""Steps by the gradient at the weights themselves."""


@contextlib.contextmanager
def uphill(parameters: Iterable[Tensor], norm: Tensor, radius: float) -> Iterator[None]:
    """Weights that lie ``radius`` up along their gradients, for as long as the context lasts.

    They come back from a copy, to the bit: adding and subtracting would round twice.

    Args:
        parameters: those that have gradients move, which any common factor of them leaves the same (a
            gradient scaler's); frozen ones have none.
        norm: of all gradients together, a scalar on the device; the same on every rank, as they are.
        radius: the distance.
    """
    with torch.no_grad():
        pairs = [(p, p.grad) for p in parameters if p.grad is not None]
        moved, gradients = [p for p, _ in pairs], [gradient for _, gradient in pairs]
        kept = [parameter.clone() for parameter in moved]
        torch._foreach_add_(moved, torch._foreach_mul(gradients, radius / (norm + EPSILON)))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(moved, kept)
