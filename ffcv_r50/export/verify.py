"""Whether an export computes what the network computes, on the whole validation set."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ffcv_r50 import build, distributed
from ffcv_r50.config.settings import Config
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import RunFault
from ffcv_r50.logs.metrics import Metrics
from ffcv_r50.training.evaluation import evaluate
from ffcv_r50.training.forward import Forward
from ffcv_r50.training.precision import Precision

TOLERANCE = 1e-4
"""Largest difference of a logit, as a share of the largest logit: float32 has 1e-7, and sums of some
hundred products in another order lose that often."""


class Verified(NamedTuple):
    """What came out."""

    metrics: Metrics
    """Of both."""
    difference: float
    """The largest of a logit."""
    largest: float
    """Logit."""


def verify(
    config: Config, ours: nn.Module, exports: Sequence[nn.Module], val_set: Beton
) -> list[Verified]:
    """Evaluate a network and what it became, in float32 on the CPU, exactly as the run was evaluated.

    Returns:
        For each export, in their order.

    Raises:
        RunFault: logits differ by more than :data:`TOLERANCE`, or an image is classified otherwise.
    """
    recorder = _Recorder(ours)
    expected = _metrics(config, recorder, val_set)
    return [_compared(config, recorder, expected, theirs, val_set) for theirs in exports]


def _compared(
    config: Config, recorder: "_Recorder", expected: Metrics, theirs: nn.Module, val_set: Beton
) -> Verified:
    comparer = _Comparer(theirs, iter(recorder.logits))
    metrics = _metrics(config, comparer, val_set)
    found = Verified(metrics, comparer.difference.item(), recorder.largest)
    if not found.difference <= TOLERANCE * found.largest:  # nor NaN
        raise RunFault(
            f"the export computes something else: logits differ by up to {found.difference:.2g}, the "
            f"largest is {found.largest:.3g}; nothing was written"
        )
    if (metrics.top_1, metrics.count) != (expected.top_1, expected.count):
        raise RunFault(
            f"the export classifies otherwise: top-1 {metrics.top_1:.4f} %, not {expected.top_1:.4f} "
            "%; nothing was written"
        )
    return found


def _metrics(config: Config, network: nn.Module, val_set: Beton) -> Metrics:
    device = torch.device("cpu")
    world = distributed.World(0, 1, 0, 1, device)
    with build.val_loader(config, val_set, world).epoch() as batches:
        return evaluate(
            network,
            batches,
            num_samples=val_set.num_samples,
            device=device,
            precision=Precision("fp32", device),
            tta=config.validation.tta,
            forward=Forward(device, config.data.statistics),
        )


class _Recorder(nn.Module):
    """Keeps the logits of each batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.logits: list[Tensor] = []
        self.largest = 0.0

    def forward(self, images: Tensor) -> Tensor:
        """The network's logits."""
        logits: Tensor = self.network(images)
        self.logits.append(logits)
        self.largest = max(self.largest, logits.abs().max().item())
        return logits


class _Comparer(nn.Module):
    """Compares the logits of each batch with those that were recorded."""

    def __init__(self, network: nn.Module, expected: Iterator[Tensor]) -> None:
        super().__init__()
        self.network = network
        self.difference = torch.zeros(())
        self._expected = expected

    def forward(self, images: Tensor) -> Tensor:
        """The network's logits."""
        logits: Tensor = self.network(images)
        differences = (logits - next(self._expected)).abs()
        self.difference = torch.maximum(self.difference, differences.max())  # also NaN
        return logits
