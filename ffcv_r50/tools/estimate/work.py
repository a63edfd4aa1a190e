"""What a network does with an image, in the two currencies that a GPU pays in."""

from typing import NamedTuple

from ffcv_r50.config.settings import Model
from ffcv_r50.models.sizes import Size
from ffcv_r50.tools import flops

BYTES = 4
"""Of memory traffic for each number that is written: written and read once, in half precision."""
PASSES = 3
"""Memory traffic of a training step, where the forward pass has 1: the backward pass writes the
gradients of what was computed, and reads what was kept."""


class Work(NamedTuple):
    """What is computed and what is moved."""

    operations: float
    """Floating-point operations."""
    num_bytes: float
    """Read from and written to the GPU's memory."""

    def times(self, count: float) -> "Work":
        """The same for so many images."""
        return Work(self.operations * count, self.num_bytes * count)

    def plus(self, other: "Work") -> "Work":
        """Both."""
        return Work(self.operations + other.operations, self.num_bytes + other.num_bytes)


def work(model: Model, num_classes: int, resolution: Size, *, training: bool) -> Work:
    """What one image costs.

    Args:
        model: the settings of the network.
        num_classes: size of its last layer.
        resolution: of the image.
        training: forward and backward pass; otherwise the forward pass alone.

    Raises:
        UserError: the network does not take images of this size.
    """
    operations = sum(flops.count(model, num_classes, resolution, training=training).values())
    passes = PASSES if training else 1
    return Work(operations, BYTES * passes * flops.written(model, num_classes, resolution))
