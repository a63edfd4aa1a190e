"""What an evaluation measures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metrics:
    """Means over every validation sample, each counted once."""

    loss: float
    """Cross-entropy without label smoothing, nats."""
    top_1: float
    """Percent."""
    top_5: float
    """Percent; of all classes where there are fewer than five."""
    count: int
