"""Everything that the ranks add up in a step, in one buffer whose layout never changes.

DistributedDataParallel lays its buckets out anew after the first backward pass. A sum over three ranks
and more depends on where in a buffer a number lies (rings add each part of a buffer in another order
of ranks), so the first step after a resume would add in another order than in the run that never
stopped. Here the layout follows from the network alone. One all-reduce a step carries all of it; or,
where the network between nodes is slow, a few of them, most of which run during the last backward pass.
They are cut from the buffer at fixed places and begin in a fixed order: the same places and order on
every rank and in every step, whichever gradient comes first.
"""

import functools
import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ffcv_r50 import distributed

ALIGNMENT = 16
"""Numbers (of four bytes) that each gradient begins at a multiple of: a cache line."""
BUCKETS = 5
"""That an overlapped sum is cut into, fewer where a network has few parameters. Each has half of what is
left: the last layers of a network have most of its parameters and are the first to have gradients; the
last bucket, which nothing hides, is a sixteenth."""


class StepSums:
    """The sums of a step: gradients, loss, votes to stop, batch-norm statistics.

    Parameters' ``.grad`` are views of the buffer from here on; backward passes add to them in place.
    Parameters that are frozen for a time keep their places, with zeros there and no ``.grad``.

    Args:
        parameters: float32, on one device, in the order of the forward pass; those that need no
            gradient now are left out for good.
        statistics: numbers of batch-norm's, see
            :class:`~ffcv_r50.models.batchnorm.RunningStatistics`.
        overlapped: sum in buckets during the last backward pass, instead of all at once after it.
        bf16: gradients travel as bf16, see :func:`~ffcv_r50.distributed.begin_all_reduce_sum_bf16`;
            all else as float32 by an all-reduce of its own.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        statistics: int,
        *,
        overlapped: bool = False,
        bf16: bool = False,
    ) -> None:
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
        self._bf16 = bf16
        self._others = self._buffer[end:]
        cuts = _cuts(starts, BUCKETS if overlapped else 1)
        ends = [end if bf16 else len(self._buffer), *cuts]
        self._buckets = [self._buffer[a:b] for b, a in itertools.pairwise(ends)]
        self._begun = 0
        self._pending: list[Callable[[], object]] = []
        self._missing: list[int] | None = None
        """Gradients that each bucket waits for; None but in the last backward pass."""
        self._bucket_of = [sum(start < cut for cut in cuts) for start in starts]
        if len(cuts) > 1:
            for parameter, bucket in zip(trained, self._bucket_of, strict=True):
                hook = functools.partial(self._arrived, bucket)
                parameter.register_post_accumulate_grad_hook(hook)
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

    def begin_reduce(self) -> None:
        """Before the last backward pass, when all but its gradients is in: sums may begin."""
        self._begun, self._pending = 0, []
        self._missing = [0] * len(self._buckets)
        for (parameter, _), bucket in zip(self._views, self._bucket_of, strict=True):
            self._missing[bucket] += parameter.requires_grad
        if self._bf16:
            self._pending.append(distributed.begin_all_reduce_sum(self._others))

    def reduce(self) -> None:
        """After the last backward pass: sum over all ranks what is not summed yet."""
        # Also buckets that miss gradients: of parameters that the network did not use.
        while self._begun < len(self._buckets):
            self._begin_bucket()
        for finish in self._pending:
            finish()
        self._missing = None

    def _arrived(self, bucket: int, parameter: Tensor) -> None:
        """A gradient of the bucket is there: begin whatever waits for nothing any more."""
        if self._missing is None:
            return
        assert self._missing[bucket], "a parameter got two gradients in one backward pass"
        self._missing[bucket] -= 1
        while self._begun < len(self._buckets) and not self._missing[self._begun]:
            self._begin_bucket()

    def _begin_bucket(self) -> None:
        begin = distributed.begin_all_reduce_sum
        if self._bf16:
            begin = distributed.begin_all_reduce_sum_bf16
        self._pending.append(begin(self._buckets[self._begun]))
        self._begun += 1


def _cuts(starts: list[int], buckets: int) -> list[int]:
    """Where buckets begin, the last one of the buffer first, each at a parameter."""
    halves = [starts[-1] >> n for n in range(1, buckets)]
    return sorted({0, *(min(s for s in starts if s >= half) for half in halves)}, reverse=True)
