"""How the images of a step fared in it: how many were right, or each by itself.

Every rank fills in what it saw and leaves the rest zero, so the sum over the ranks is exact, whoever
adds first. It is a sum of its own, beside the gradient's (:mod:`ffcv_r50.training.reduction`): where a
number lies in that one shapes its bits, and what is recorded must not. The sum is under way while the
optimizer works.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ffcv_r50 import distributed

COUNTS = 3
"""How many numbers a step's outcomes begin with: those that were right at once, those among whose
first five classes the right one was, and of how many images; only those that show one class count."""


class Outcomes:
    """Of the images of one step after another.

    Args:
        batch_size: of all ranks together.
        device: of the logits.
        each: also say it of each image.
    """

    def __init__(self, batch_size: int, device: torch.device, *, each: bool) -> None:
        size = COUNTS + (2 * batch_size if each else 0)
        self.values: Tensor = torch.zeros(size, device=device)
        """float32: the :data:`COUNTS`; then, if asked for, for each position in the global batch the
        cross-entropy in nats and for each whether it was right at once, 1 or 0."""
        self._each = self.values[COUNTS:].view(2, -1)
        self._summed: Callable[[], object] = lambda: None

    def begin(self) -> None:
        """Before the first micro-batch of a step."""
        self.values.zero_()

    @torch.no_grad()
    def add(self, logits: Tensor, targets: Tensor, positions: range) -> None:
        """A micro-batch.

        Args:
            logits: float32 [n, classes].
            targets: int64 [n] classes, or float [n, classes] shares: then an image is right where its
                largest share is, and counts only where that is all of it.
            positions: of its images in the global batch.
        """
        classes, whole = targets, None
        if targets.is_floating_point():
            shares, classes = targets.max(1)
            whole = (shares >= 1)[:, None]
        right = logits.topk(min(5, logits.shape[1]), dim=1).indices == classes[:, None]
        if self._each.numel():
            place = self._each[:, positions.start : positions.stop]
            place[0] = F.cross_entropy(logits, targets, reduction="none")
            place[1] = right[:, 0]
        counted = right if whole is None else right & whole
        self.values[0] += counted[:, 0].sum()
        self.values[1] += counted.sum()
        self.values[2] += len(positions) if whole is None else whole.sum()

    def begin_sum(self) -> None:
        """After the last micro-batch: begin to sum over all ranks."""
        self._summed = distributed.begin_all_reduce_sum(self.values)

    def end_sum(self) -> Tensor:
        """:attr:`values`, the same on every rank."""
        self._summed()
        return self.values
