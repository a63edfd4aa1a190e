"""A training batch as the network sees it: a picture of its images with their targets."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ffcv_r50 import build, distributed, recipe
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import UserError, exit_with
from ffcv_r50.files import atomic_write
from ffcv_r50.recipe import Plan
from ffcv_r50.registry import Options, Range
from ffcv_r50.tools import recipe_words
from ffcv_r50.training.protocols import Batch
from ffcv_r50.training.transforms.normalize import MEAN, STD

USAGE = """\
usage: python -m ffcv_r50.tools.show_batch FILE --data.train_dataset=FILE [--epoch=N] [--step=N] [--images=N] [--output=FILE] [--section.key=value ...]

Draw the images of a training step after all crops and augmentations, with the targets under each: the
same ones that a run of this recipe sees in this step, on any number of processes.
"""

TEXT_HEIGHT = 12
LINES = 2
"""Of text under an image: a mixed one has two classes."""
MARGIN = 4
SMALLEST = 128
"""Smaller images are enlarged to so many pixels, whole pixels each."""


class Shown(Options):
    """What is drawn."""

    epoch: Annotated[int, Range(at_least=0)] = 0
    """Counted from 0."""
    step: Annotated[int, Range(at_least=0)] = 0
    """Of the epoch, counted from 0."""
    images: Annotated[int, Range(at_least=1, at_most=1024)] = 32
    """The first so many of the step's batch."""
    output: str = "batch.png"
    """The file that is written."""


def main() -> None:
    """Draw what the command line names; exit as :func:`errors.exit_with` says."""
    exit_with(lambda: show(sys.argv[1:]))


def show(argv: Sequence[str]) -> None:
    """Write the picture.

    Args:
        argv: see :data:`USAGE`.

    Raises:
        UserError: a fault in the recipe, the data or the command line; nothing is written.
    """
    _, options, config = recipe_words.read(argv, Shown, USAGE)
    if not config.data.train_dataset:
        raise UserError("data.train_dataset is missing; pass --data.train_dataset=PATH")
    epochs, output = config.training.epochs, Path(options.output)
    if options.epoch >= epochs:
        raise UserError(f"command line: --epoch={options.epoch}: the recipe has {epochs}, from 0")
    if output.suffix.lower() not in Image.registered_extensions():
        raise UserError(
            f"command line: --output={output}: give it the name of an image, such as .png"
        )
    world = distributed.World(0, 1, 0, 1, torch.device("cpu"))
    dataset = Beton(config.data.train_dataset)
    plan = Plan(_share(config.training.batch_size, options.images), 1)
    loader = build.train_loader(config, dataset, plan, world)
    steps = loader.steps_per_epoch
    if options.step >= steps:
        raise UserError(f"command line: --step={options.step}: an epoch has {steps:,}, from 0")
    step = recipe.step(config, options.epoch, options.step, steps)
    resolution = recipe.resolution(config, options.epoch)
    with loader.epoch(options.epoch, resolution, options.step) as loaded:
        batch = next(build.train_batches(loaded, plan, world))
        for transform in build.batch_transforms(config, dataset.num_classes, world.device):
            batch = transform(batch, step)
        names = dataset.sidecar.classes if dataset.sidecar else []
        picture = _picture(batch, options.images, names)
    try:
        with atomic_write(output) as file:
            picture.save(file, format=Image.registered_extensions()[output.suffix.lower()])
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error})") from error
    shown = min(options.images, len(batch.targets))
    print(
        f"{output}: {shown} of the {config.training.batch_size:,} images of step {options.step} in epoch "
        f"{options.epoch}, {resolution} px"
    )


def _share(batch_size: int, images: int) -> int:
    """The smallest even part of a batch with so many images: they are the same however it is cut."""
    parts = (n for n in range(min(images, batch_size), batch_size) if batch_size % n == 0)
    return next((n for n in parts if n % 2 == 0), batch_size)


def _picture(batch: Batch, count: int, names: Sequence[str]) -> Image.Image:
    """A sheet of the first images."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    images = (batch.images[:count] * std + mean).round().clamp(0, 255).byte()
    side = images.shape[2]
    shown = side * max(1, -(-SMALLEST // side))
    columns = math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    cell = (shown + MARGIN, shown + LINES * TEXT_HEIGHT + MARGIN)
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_HEIGHT - 2)
    for i, (image, target) in enumerate(zip(images, batch.targets, strict=False)):
        left, top = MARGIN + i % columns * cell[0], MARGIN + i // columns * cell[1]
        pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
        sheet.paste(pixels.resize((shown, shown), Image.Resampling.NEAREST), (left, top))
        for line, text in enumerate(_words(target, names)):
            draw.text((left, top + shown + line * TEXT_HEIGHT), text, "black", font)
    return sheet


def _words(target: Tensor, names: Sequence[str]) -> list[str]:
    """The classes of an image, and their shares where there are several."""

    def name(number: int) -> str:
        return names[number][:16] if names else f"class {number}"

    if not target.is_floating_point():
        return [name(int(target))]
    shares, classes = target.topk(min(LINES, len(target)))
    # Under half a percent nothing of it can be seen.
    found = [(float(s), int(c)) for s, c in zip(shares, classes, strict=True) if s >= 0.005]
    return [
        f"{share:.0%} {name(number)}" if len(found) > 1 else name(number) for share, number in found
    ]


if __name__ == "__main__":
    main()
