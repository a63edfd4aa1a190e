"""Running statistics of batch-norm that advance once per optimizer step.

A step's batch is normalised in parts (``training.norm_batch_size`` samples each), one after the
other on one process or side by side on many. Left to itself, torch would advance the running
averages once per part and keep a different average on each process. Here a step advances them once,
by the mean over all its parts, so they do not depend on how the parts were spread.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class RunningStatistics:
    """Gathers the batch statistics of a step and advances the model's running averages.

    Takes over the momentum of the model's batch-norms: during a step their buffers hold the
    statistics of the last part (momentum 1), after :meth:`advance` the running averages again.
    A model without batch-norm has :attr:`size` 0 and every call does nothing.

    Args:
        model: already on its device.
    """

    def __init__(self, model: nn.Module) -> None:
        norms = [
            module
            for module in model.modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        ]
        self._buffers: list[Tensor] = []
        self._counts: list[Tensor] = []
        momenta: list[Tensor] = []
        for norm in norms:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.num_batches_tracked is not None
            assert norm.momentum is not None, "a cumulative average has no step to advance by"
            self._buffers += [norm.running_mean, norm.running_var]
            self._counts.append(norm.num_batches_tracked)
            momenta.append(torch.full((2 * norm.num_features,), norm.momentum))
            norm.momentum = 1.0
        self.size = sum(buffer.numel() for buffer in self._buffers)
        """Numbers in a step's statistics: all means and variances, concatenated."""
        if norms:
            self._momenta = torch.cat(momenta).to(self._buffers[0].device)
            self._average = torch.empty_like(self._momenta)

    def begin(self) -> None:
        """Before a step's first forward pass: keep the running averages."""
        if self.size:
            torch.cat(self._buffers, out=self._average)

    def add_to(self, sums: Tensor) -> None:
        """After each forward pass: add this part's statistics to ``sums`` (float [size])."""
        if self.size:
            sums += torch.cat(self._buffers)

    def advance(self, mean: Tensor, parts: int) -> None:
        """After the last forward pass: one step of the running averages.

        Args:
            mean: float [size], the mean of the statistics over all parts of all processes.
            parts: forward passes of this process in this step.
        """
        if self.size:
            self._average.lerp_(mean, self._momenta)
            torch._foreach_copy_(
                self._buffers,
                [
                    part.view_as(buffer)
                    for part, buffer in zip(
                        self._average.split([b.numel() for b in self._buffers]),
                        self._buffers,
                        strict=True,
                    )
                ],
            )
            torch._foreach_sub_(self._counts, parts - 1)
