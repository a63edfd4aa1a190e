"""Mean and deviation of the colours."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ffcv_r50.data.beton import Beton
from writers.inspect import reading


class Stats(NamedTuple):
    """Of red, green and blue, in units of 0 to 255.

    Each image counts the same, whatever its size, as in training, which crops them all to one size:
    the mean of the images' means; the root of the mean over the images of the mean squared
    distance of a pixel from that.
    """

    mean: npt.NDArray[np.float64]
    """[3]"""
    std: npt.NDArray[np.float64]
    """[3]"""
    damaged: int
    """Images that cannot be decoded and are left out."""


def stats(dataset: Beton) -> Stats:
    """Over all pixels of all images."""
    values = np.arange(256)
    powers = np.stack([values, values**2])

    def moments(sample: int, data: bytes) -> npt.NDArray[np.float64] | None:
        try:
            pixels = reading.decode(dataset, sample, data)
        except reading.Damaged:
            return None
        counts = np.array(Image.fromarray(pixels).histogram()).reshape(3, 256)
        # Sums of integers, so exact.
        return np.asarray(powers @ counts.T / (pixels.size // 3))

    total = np.zeros((2, 3))
    good = 0
    for _, found in reading.each(dataset, moments):
        if found is not None:
            total += found
            good += 1
    mean, square = total / max(good, 1)
    return Stats(mean, np.sqrt(square - mean**2), dataset.num_samples - good)


def show(s: Stats) -> None:
    """Print it, in units of 0 to 1 too, as torchvision has them, and as a run's settings."""
    settings = []
    for name, value in (("mean", s.mean), ("std", s.std)):
        of_one = [f"{v / 255:.4f}" for v in value]
        print(f"  {name:8} {', '.join(f'{v:.4f}' for v in value)} (of 1: {', '.join(of_one)})")
        settings.append(f"--data.{name}='[{', '.join(of_one)}]'")
    print(f"  to train {' '.join(settings)}")
    if s.damaged:
        print(f"  {s.damaged:,} images cannot be decoded and are left out; see --verify")
