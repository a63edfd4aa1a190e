"""Some images of the validation file, to try the network on."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ffcv_r50 import saved
from ffcv_r50.data import photos
from ffcv_r50.data.beton import MODE_RAW, Beton
from ffcv_r50.report import thumbnails
from ffcv_r50.saved import Saved

COUNT = 12
"""Examples."""


class Example(NamedTuple):
    """One of them."""

    dataset: Beton
    sample: int
    """Its index."""
    thumbnail: str
    """A small picture, as the address that holds it."""

    @property
    def label(self) -> int:
        """The class that the file says it has."""
        return int(self.dataset.labels[self.sample])

    def pixels(self) -> npt.NDArray[np.uint8]:
        """uint8 [height, width, 3], as the evaluation sees them.

        Raises:
            photos.BadImage: it cannot be decoded.
            RunFault: the file cannot be read any more.
        """
        data = self.dataset.read(self.sample)
        if self.dataset.modes[self.sample] == MODE_RAW:
            height, width = self.dataset.heights[self.sample], self.dataset.widths[self.sample]
            return np.frombuffer(data, np.uint8).reshape(height, width, 3)
        return photos.decode(data, formats=("JPEG",))


def of(found: Saved) -> list[Example]:
    """Examples from all over the validation file, in which the images of a class usually lie together.

    Args:
        found: whose settings say where the file is; there are no examples where it is not there.

    Raises:
        UserError: it is there, but is damaged, or has more classes than the network.
    """
    file = found.config.data.val_dataset
    if not file or not Path(file).exists():
        return []
    dataset = Beton(file)
    saved.check_classes(found.network, dataset, f"{found.file}")
    spread = np.linspace(0, dataset.num_samples - 1, COUNT).round().astype(int)
    all_of_them = [
        Example(dataset, sample, thumbnails.of_sample(dataset, sample))
        for sample in np.unique(spread).tolist()
    ]
    return [example for example in all_of_them if example.thumbnail]  # else it cannot be decoded
