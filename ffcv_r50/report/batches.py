"""Training images: batches as the network saw them, rebuilt from the seed on any machine that has the
file, and those that it did not learn."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ffcv_r50 import build, distributed, recipe
from ffcv_r50.config.settings import Config
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import RunFault, UserError
from ffcv_r50.recipe import Plan
from ffcv_r50.report import thumbnails
from ffcv_r50.report.folder import Run

SHOWN_CLASSES = 2
"""Of an image: a mixed one has two."""
SHOWN_IMAGES = 20
"""Of a batch, in the report."""


class Seen(NamedTuple):
    """The first images of a step, after all crops and augmentations."""

    pixels: npt.NDArray[np.uint8]
    """[images, height, width, 3]."""
    targets: Tensor
    """int64 [images] classes, or float [images, classes] shares."""

    @property
    def size(self) -> str:
        """Of an image, in pixels: ``160``, or ``152 x 144``."""
        height, width = self.pixels.shape[1:3]
        return f"{height}" if height == width else f"{height} x {width}"


def seen(config: Config, dataset: Beton, epoch: int, number: int, images: int) -> Seen:
    """What a run of these settings sees in a step, on any number of processes.

    Args:
        config: its settings.
        dataset: of training images.
        epoch: counted from 0.
        number: of the step within the epoch, counted from 0; one that there is.
        images: at most so many.

    Raises:
        UserError: the dataset is smaller than a batch, or an image cannot be decoded.
    """
    world = distributed.World(0, 1, 0, 1, torch.device("cpu"))
    plan = Plan(_share(config.training.batch_size, images), 1)
    loader = build.train_loader(config, dataset, plan, world)
    step = recipe.step(config, epoch, number, loader.steps_per_epoch)
    with loader.epoch(epoch, recipe.resolution(config, epoch), number) as loaded:
        batch = next(build.train_batches(loaded, plan, world))
        for transform in build.batch_transforms(config, dataset.num_classes, world.device):
            batch = transform(batch, step)
        shown = batch.images[:images]
        if shown.is_floating_point():
            mean, std = config.data.statistics.tensors()
            shown = (shown * std + mean).round().clamp(0, 255).byte()
        return Seen(shown.permute(0, 2, 3, 1).numpy().copy(), batch.targets[:images].clone())


def _share(batch_size: int, images: int) -> int:
    """The smallest even part of a batch with so many images: they are the same however it is cut."""
    parts = (n for n in range(min(images, batch_size), batch_size) if batch_size % n == 0)
    return next((n for n in parts if n % 2 == 0), batch_size)


def words(target: Tensor, known: Sequence[str]) -> list[str]:
    """The classes of an image, and their shares where there are several.

    Args:
        target: a class, or shares of all.
        known: what classes are called; empty where nobody knows.
    """

    def name(number: int) -> str:
        return known[number] if known else f"class {number}"

    if not target.is_floating_point():
        return [name(int(target))]
    shares, classes = target.topk(min(SHOWN_CLASSES, len(target)))
    # Under half a percent nothing of it can be seen.
    found = [(float(s), int(c)) for s, c in zip(shares, classes, strict=True) if s >= 0.005]
    return [
        f"{share:.0%} {name(number)}" if len(found) > 1 else name(number) for share, number in found
    ]


# --------------------------------------------------------------------------------- in the report


class SeenCard(NamedTuple):
    """An image with its targets."""

    image: str
    words: list[str]


class SeenBatch(NamedTuple):
    """The first images of a batch."""

    title: str
    note: str
    cards: list[SeenCard]


def hardest(run: Run) -> list[SeenBatch]:
    """The training images with the highest losses, where they were recorded and are still there."""
    ledger, dataset = run.ledger, run.train_set
    if ledger is None or dataset is None or len(ledger.loss) != dataset.num_samples:
        return []
    known = _names(dataset)
    order = np.argsort(-np.nan_to_num(ledger.loss, nan=-1.0), kind="stable")[:SHOWN_IMAGES]
    cards = [
        SeenCard(
            thumbnails.of_sample(dataset, int(i)),
            [
                known[dataset.labels[i]] if known else f"class {dataset.labels[i]}",
                f"loss {ledger.loss[i]:.1f}",
                f"right {ledger.right[i]} of {ledger.shown[i]}",
            ],
        )
        for i in order
    ]
    note = "By their mean over the epochs. An image whose label is wrong is one that stays wrong."
    return [SeenBatch("Training images with the highest losses", note, cards)]


def _names(dataset: Beton) -> list[str]:
    return dataset.sidecar.names if dataset.sidecar else []


def first_and_last(run: Run) -> list[SeenBatch]:
    """The first batch of a run and the last one so far, where the training set is still there."""
    dataset, config = run.train_set, run.config
    if dataset is None:
        return []
    last = int(run.last["epoch"])
    steps = dataset.num_samples // config.training.batch_size
    known = _names(dataset)
    found = []
    for title, epoch, number in (("The first", 0, 0), ("The last", last, steps - 1)):
        try:
            batch = seen(config, dataset, epoch, number, SHOWN_IMAGES)
        except (UserError, RunFault):  # another file than the run's may lie there by now
            return []
        cards = [
            SeenCard(thumbnails.uri(Image.fromarray(pixels)), words(target, known))
            for pixels, target in zip(batch.pixels, batch.targets, strict=True)
        ]
        note = (
            f"Its first {len(cards)} images at {batch.size} px, after all crops and augmentations."
        )
        found.append(SeenBatch(f"{title} training batch as the network saw it", note, cards))
    return found
