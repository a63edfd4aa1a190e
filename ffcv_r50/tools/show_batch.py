"""A training batch as the network sees it: a picture of its images with their targets."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from PIL import Image

from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import UserError, exit_with
from ffcv_r50.files import atomic_write
from ffcv_r50.registry import Options, Range
from ffcv_r50.report import batches, sheet
from ffcv_r50.tools import recipe_words

USAGE = """\
usage: python -m ffcv_r50.tools.show_batch FILE --data.train_dataset=FILE [--epoch=N] [--step=N] [--images=N] [--output=FILE] [--section.key=value ...]

Draw the images of a training step after all crops and augmentations, with the targets under each: the
same ones that a run of this recipe sees in this step, on any number of processes.
"""


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
    dataset = Beton(config.data.train_dataset)
    steps = dataset.num_samples // config.training.batch_size
    if 0 < steps <= options.step:
        raise UserError(f"command line: --step={options.step}: an epoch has {steps:,}, from 0")
    batch = batches.seen(config, dataset, options.epoch, options.step, options.images)
    names = [name[:16] for name in dataset.sidecar.classes] if dataset.sidecar else []
    words = [batches.words(target, names) for target in batch.targets]
    picture = sheet.draw(batch.pixels, words)
    try:
        with atomic_write(output) as file:
            picture.save(file, format=Image.registered_extensions()[output.suffix.lower()])
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error})") from error
    print(
        f"{output}: {len(batch.pixels)} of the {config.training.batch_size:,} images of step "
        f"{options.step} in epoch {options.epoch}, {batch.size} px"
    )


if __name__ == "__main__":
    main()
