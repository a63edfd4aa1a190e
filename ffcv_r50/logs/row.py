"""What a step and an epoch came to: the rows that go to every sink."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from ffcv_r50.logs.metrics import Metrics

TIMES = (
    "images_per_second",
    "data_wait_fraction",
    "epoch_seconds",
    "eval_seconds",
    "step_seconds",
    "wait_seconds",
    "save_seconds",
    "start_seconds",
    "peak_memory_bytes",
    "gpu_utilization",
    "gpu_power_watts",
    "gpu_clock_mhz",
)
"""Names of what differs between equal runs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRow:
    """One optimizer step."""

    step: int
    """From the run's start, from 0."""
    lr: float
    resolution: int
    """Side of its images in pixels."""
    fingerprint: str
    """Of its data, see :mod:`ffcv_r50.data.fingerprint`."""
    measured: "Measured | None" = None
    """None where steps are thinned out."""

    def values(self) -> dict[str, Any]:
        """Flat, under the names that logs use."""
        row = {key: getattr(self, key) for key in ("step", "lr", "resolution", "fingerprint")}
        return row | (self.measured._asdict() if self.measured else {})


class Measured(NamedTuple):
    """What came out of a step."""

    epoch: float
    """Where it lies in the run: 2.5 is the middle of the third epoch."""
    loss: float
    """Mean over the global batch, as trained."""
    gradient_norm: float
    """Before clipping."""
    images_per_second: float
    """Since the last step that was measured, or the start of the epoch."""
    data_wait_fraction: float
    """Share of that time that was spent waiting for data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One epoch, trained and evaluated."""

    epoch: int
    """From 0."""
    step: int
    """Optimizer steps since the run's start, at its end."""
    lr: float
    """Of its last step."""
    resolution: int
    """Side of its training images in pixels."""
    train_loss: float
    """Mean over its steps, as trained."""
    validation: Metrics
    """Of the network."""
    averages: Mapping[str, Metrics] = dataclasses.field(default_factory=dict)
    """Of each average of its weights, by name."""
    images_per_second: float
    """Of training."""
    data_wait_fraction: float
    """Share of the training's time that was spent waiting for data."""
    epoch_seconds: float
    """Of training."""
    eval_seconds: float
    """Of evaluation, and of the batch-norm statistics that it needs."""
    train_top_1: float | None = None
    """Percent of the training images, as they were augmented and before the step that they were
    part of; only those count that show one class. None where all are mixed."""
    train_top_5: float | None = None
    """Likewise."""
    step_seconds: float = 0.0
    """Of training, less waiting for data and saving."""
    wait_seconds: float = 0.0
    """Of training, waiting for data."""
    save_seconds: float = 0.0
    """That training stood still for checkpoints, since the row before."""
    start_seconds: float = 0.0
    """Of the starts since the row before, each until its first step."""
    peak_memory_bytes: int = 0
    """Most that rank 0 had allocated at a time: of its GPU in this epoch, or on a CPU of main memory
    since it started."""
    gpu_utilization: float | None = None
    """Percent, mean since the row before, of rank 0's GPU; None without one or without its package."""
    gpu_power_watts: float | None = None
    """Likewise."""
    gpu_clock_mhz: float | None = None
    """Likewise, of the multiprocessors."""

    def values(self) -> dict[str, Any]:
        """Flat, under the names that logs use; those of an average begin with its name."""
        row: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            if field.name == "validation":
                row |= _named(self.validation)
            elif field.name == "averages":
                for name, metrics in self.averages.items():
                    row |= {f"{name}_{key}": value for key, value in _named(metrics).items()}
            else:
                row[field.name] = getattr(self, field.name)
        return row


def _named(metrics: Metrics) -> dict[str, float]:
    return {"val_loss": metrics.loss, "top_1": metrics.top_1, "top_5": metrics.top_5}
