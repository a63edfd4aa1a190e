"""What a network makes of each sample of the validation set."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ffcv_r50 import distributed
from ffcv_r50.files import Arrays


class Predictions:
    """Collected batch by batch on every rank, then put together.

    Args:
        num_samples: of the validation set.
        device: of the network.
    """

    def __init__(self, num_samples: int, device: torch.device) -> None:
        self._num_samples = num_samples
        self._device = device
        self._rows: list[Tensor] = []
        self._indices: list[Tensor] = []

    def add(self, indices: Tensor, labels: Tensor, logits: Tensor) -> None:
        """A batch.

        Args:
            indices: int64 [n], of the samples in the file.
            labels: int64 [n].
            logits: float32 [n, classes].
        """
        top = logits.softmax(1).topk(min(5, logits.shape[1]), dim=1)
        loss = F.cross_entropy(logits, labels, reduction="none")
        # Classes are exact in float32, so one sum over the ranks carries everything.
        self._rows.append(torch.cat([top.values, top.indices, loss[:, None]], 1))
        self._indices.append(indices.clone())

    def arrays(self, labels: npt.NDArray[np.int64], num_classes: int) -> Arrays:
        """Of all samples, in the order of the file; every rank must call it.

        Args:
            labels: [samples], of the file.
            num_classes: of the network.

        Returns:
            ``index`` int64 [n]; ``target`` int64 [n]; ``loss`` float32 [n], the cross-entropy in nats;
            ``classes`` int32 [n, k], the k = 5 (or all, where there are fewer) most probable ones, the
            first the most; ``probabilities`` float32 [n, k], theirs.
        """
        k = min(5, num_classes)
        rows = torch.zeros(self._num_samples, 2 * k + 1, device=self._device)
        for indices, batch in zip(self._indices, self._rows, strict=True):
            rows[indices] = batch
        distributed.all_reduce_sum(rows)
        found = rows.cpu().numpy()
        return {
            "index": np.arange(self._num_samples),
            "target": labels.copy(),
            "loss": found[:, 2 * k],
            "classes": found[:, k : 2 * k].astype(np.int32),
            "probabilities": found[:, :k],
        }
