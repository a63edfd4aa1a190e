"""Everything that the ranks add up in a step, in one buffer whose layout never changes.

DistributedDataParallel lays its buckets out anew after the first backward pass. A sum over four ranks
and more depends on where in a buffer a number lies (rings add each part of a buffer in another order
of ranks), so the first step after a resume would add in another order than in the run that never
stopped. Here the layout follows from the network alone, and one all-reduce a step carries all of it.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ffcv_r50 import distributed

ALIGNMENT = 16
"""Numbers (of four bytes) that each gradient begins at a multiple of: a cache line."""


class StepSums:
    """The sums of a step: gradients, loss, votes to stop, batch-norm statistics.

    Parameters' ``.grad`` are views of the buffer from here on; backward passes add to them in place.
    Parameters that are frozen for a time keep their places, with zeros there and no ``.grad``.

    Args:
        parameters: float32, on one device; those that need no gradient now are left out for good.
        statistics: numbers of batch-norm's, see
            :class:`~ffcv_r50.models.batchnorm.RunningStatistics`.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], statistics: int) -> None:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        device = trained[0].device
        starts, end = [], 0
        for parameter in trained:
            starts.append(end)
            end += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        self._buffer = torch.zeros(end + 2 + statistics, device=device)
        self.gradients: Tensor = self._buffer[:end]
        """float32, flat: all gradients, with zeros between them."""
        self.loss: Tensor = self._buffer[end]
        self.votes: Tensor = self._buffer[end + 1]
        self.statistics: Tensor = self._buffer[end + 2 :]
        # With the parameter's own strides (channels-last), or autograd would replace the view.
        self._views = [
            (parameter, self._buffer.as_strided(parameter.shape, parameter.stride(), start))
            for parameter, start in zip(trained, starts, strict=True)
        ]
        self.begin(stop=False)

    def begin(self, stop: bool) -> None:
        """Before the first forward pass of a step.

        Args:
            stop: whether this rank asks to stop.
        """
        self._buffer.zero_()
        self.votes.fill_(float(stop))
        for parameter, view in self._views:
            # Optimizers pass over parameters without a gradient; one of zeros would still decay.
            parameter.grad = view if parameter.requires_grad else None

    def reduce(self) -> None:
        """After the last backward pass: sum over all ranks."""
        distributed.all_reduce_sum(self._buffer)
