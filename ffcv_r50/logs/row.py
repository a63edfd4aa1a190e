"""What an epoch came to: the row that goes to every sink."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ffcv_r50.logs.metrics import Metrics


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
