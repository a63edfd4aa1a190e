"""What a step is made of: the shapes that transforms, losses and averages fit into.

Each is a function of the step and of what belongs to a sample (its index in the file, its position in
the global batch), never of a rank, a process or a generator's hidden state: so a run sees the same at
any world size and from any step on.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


class Step(NamedTuple):
    """An optimizer step, the same on every rank."""

    seed: int
    """Of the run."""
    number: int
    """Counted from the run's start."""
    epoch: float
    """Where the step lies in the run: 2.5 is the middle of the third epoch."""
    values: Mapping[str, float]
    """What the schedule says for this step: ``lr``, ``momentum``, ``weight_decay``,
    ``label_smoothing``."""


class Batch(NamedTuple):
    """One micro-batch on the device. Valid until the next one is asked for."""

    images: Tensor
    """[n, 3, height, width], channels-last in memory: uint8 as loaded, then float32, normalised."""
    targets: Tensor
    """int64 [n] classes, or float [n, classes] shares where they are mixed."""
    indices: Tensor
    """int64 [n], of the samples in the file."""
    positions: range
    """Of the samples in the global batch: neighbours, known without asking the device."""


class Transform(Protocol):
    """Changes a batch on the device; registered in :mod:`ffcv_r50.training.transforms`."""

    def __call__(self, batch: Batch, step: Step) -> Batch:
        """The batch that goes on; images may be changed in place, the other tensors not."""
        ...


class Loss(Protocol):
    """What is minimised; registered in :mod:`ffcv_r50.training.losses`."""

    def __call__(self, logits: Tensor, targets: Tensor, step: Step) -> Tensor:
        """A scalar: the mean over the samples of float32 [n, classes] logits.

        Of the step a loss may use the label smoothing: with ``training.cuda_graphs`` it is given no more.
        """
        ...


class Average(Protocol):
    """A second set of weights that follows the network; see :mod:`ffcv_r50.training.averages`."""

    def update(self, network: nn.Module, step: Step) -> None:
        """After a step, when weights and batch-norm statistics are the step's."""
        ...

    def network(self) -> nn.Module | None:
        """What is evaluated: a network with the averaged weights; None before there are any."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint carries: tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        ...
