"""How each training image fared in an epoch: a few bytes of each."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ffcv_r50.files import Arrays


class Ledger:
    """Of the epoch under way; part of checkpoints.

    Args:
        num_samples: of the dataset.
    """

    def __init__(self, num_samples: int) -> None:
        self._loss = torch.full((num_samples,), torch.nan, dtype=torch.float16)
        self._correct = torch.zeros(num_samples, dtype=torch.bool)

    def add(self, samples: npt.NDArray[np.int64], each: torch.Tensor) -> None:
        """A step.

        Args:
            samples: [n] indices in the file, in the order of the global batch; of several views of a
                sample the last one stays.
            each: float32 [2, n], see :class:`~ffcv_r50.training.outcomes.Outcomes`.
        """
        losses, correct = each.numpy()
        self._loss.numpy()[samples] = losses
        self._correct.numpy()[samples] = correct > 0

    def arrays(self) -> Arrays:
        """``loss`` float16 [samples], not a number where a sample was not shown, and ``correct`` bool
        [samples].
        """
        return {"loss": self._loss.numpy(), "correct": self._correct.numpy()}

    def state_dict(self) -> dict[str, Any]:
        """What the epoch's steps so far have left."""
        return {"loss": self._loss, "correct": self._correct}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._loss.copy_(state["loss"])
        self._correct.copy_(state["correct"])
