"""How many classes a training step sees: by order of training, and by order of the file.

    python -m benchmarks.classes_per_step [--images=1281167] [--classes=1000] [--batch_size=1024]

The file is simulated: images of 110 kB, in pages as a writer fills them, class by class or shuffled.
"""

import sys
from typing import Annotated

import numpy as np
import numpy.typing as npt

from ffcv_r50.config import command_line
from ffcv_r50.data.order import PageOrder, random_order
from ffcv_r50.errors import exit_with
from ffcv_r50.registry import Options, Range
from writers.beton_writer import PAGE_SIZE

IMAGE_BYTES = 110_000

Count = Annotated[int, Range(at_least=1)]


class Asked(Options):
    """The dataset, and the step."""

    images: Count = 1_281_167
    """In the dataset."""
    classes: Count = 1000
    """Of equal size."""
    batch_size: Count = 1024
    """Images of a step."""


def classes_per_step(
    labels: npt.NDArray[np.int64], order: npt.NDArray[np.int64], batch_size: int
) -> float:
    """Different classes in a step, the mean over the steps of an epoch.

    Args:
        labels: [samples].
        order: sample indices, at least one batch.
        batch_size: samples of a step.
    """
    steps = len(order) // batch_size
    batches = np.sort(labels[order[: steps * batch_size]].reshape(steps, batch_size), axis=1)
    return float((np.diff(batches, axis=1) != 0).sum(axis=1).mean()) + 1


def main() -> None:
    """Print the table."""
    asked = command_line.read(Asked, sys.argv[1:], usage=__doc__ or "")
    samples = np.arange(asked.images)
    per_page = PAGE_SIZE // IMAGE_BYTES
    offsets = samples // per_page * PAGE_SIZE + samples % per_page * IMAGE_BYTES
    orders = {
        "random": random_order(asked.images, 0, 0),
        "quasi_random": PageOrder(offsets, PAGE_SIZE).order(0, 0, asked.batch_size),
    }
    by_class = samples * asked.classes // asked.images
    files = {"by class": by_class, "shuffled": by_class[random_order(asked.images, 1, 0)]}
    print(f"{'stored':10}" + "".join(f"{name:>14}" for name in orders))
    for stored, labels in files.items():
        found = [classes_per_step(labels, order, asked.batch_size) for order in orders.values()]
        print(f"{stored:10}" + "".join(f"{number:14.1f}" for number in found))


if __name__ == "__main__":
    exit_with(main)
