"""What a trained network says of images.

::

    python -m ffcv_r50.predict RUN|WEIGHTS IMAGE|FOLDER|- ... [--json] [--top 5] [--weights ema]
        [--batch-size 32] [--device cuda] [--section.key=value ...]

RUN is a run's folder, WEIGHTS a file in one, or any other with ``--config=RECIPE``. Of a folder all
images below it are taken; ``-`` reads names from standard input, one a line. Images are cropped,
resized, normalised and, where the recipe says so, mirrored exactly as in the evaluation. Prints a table,
or with ``--json`` one JSON object a line. An image that cannot be read is named, the others are done;
the exit code is then 2.
"""

import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ffcv_r50 import saved
from ffcv_r50.config import command_line
from ffcv_r50.data import photos
from ffcv_r50.errors import BAD_INPUT, FINISHED, UserError, exit_with, one_line
from ffcv_r50.registry import Options, Range
from ffcv_r50.saved import Saved
from ffcv_r50.training.evaluation import logits_of
from ffcv_r50.training.forward import Forward
from ffcv_r50.training.precision import Precision

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
"""What is taken for an image in a folder, in any case."""
WIDTH = 80
"""Columns of the table, where standard output is no terminal."""
Count = Annotated[int, Range(at_least=1)]


class Chosen(Options):
    """Which network predicts, and on what."""

    weights: str | None = None
    """Of a run: `network`, or the name of one of its averages; null is what its `weights.pt` is."""
    device: str | None = None
    """Such as `cpu`, `cuda:1` or `mps` (Apple's GPU); null is the first GPU, where there is one."""


class Asked(Chosen):
    """What is predicted, and how; every other word is a setting."""

    top: Count = 5
    """Classes shown of each image, the likeliest first."""
    batch_size: Count = 32
    """Images at a time."""
    as_json: Annotated[bool, Field(alias="json")] = False
    """One JSON object a line instead of a table."""


class Prediction(NamedTuple):
    """What the network says of one image."""

    image: str
    classes: list[int]
    """The likeliest first."""
    probabilities: list[float]
    """Theirs."""


class Unread(NamedTuple):
    """An image that could not be read."""

    image: str
    reason: str


def main() -> None:
    """Predict what the command line names; exit as :func:`errors.exit_with` says."""
    exit_with(lambda: predict(sys.argv[1:]))


def predict(argv: Sequence[str]) -> int:
    """Print what a network says of images.

    Args:
        argv: see the module's text.

    Returns:
        The exit code: 2 where an image could not be read.

    Raises:
        UserError: no network, no images, or a fault in an option.
    """
    named, asked, words = command_line.with_names(Asked, argv or ["--help"], __doc__ or "")
    if len(named) < 2:
        what = "no images" if named else "no run or weights"
        raise UserError(f"command line: {what}; write RUN IMAGE ... before the options")
    device = device_of(asked.device)
    found = saved.find(Path(named[0]), asked.weights, words, device)
    unread = 0
    table = Table(box=None, pad_edge=False)
    table.add_column("image", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right")
    for result in predictions(found, files(named[1:]), asked.batch_size, device, asked.top):
        if isinstance(result, Unread):
            unread += 1
            print(one_line(f"{result.image}: {result.reason}"), file=sys.stderr, flush=True)
        if asked.as_json:
            print(json.dumps(_row(result, found.classes)), flush=True)
        elif isinstance(result, Prediction):
            for rank, (number, share) in enumerate(zip(*result[1:], strict=True)):
                image = one_line(result.image) if rank == 0 else ""
                table.add_row(image, one_line(found.classes[number]), f"{share:.1%}")
    if table.row_count:
        console = Console(markup=False, highlight=False, emoji=False)
        if not console.is_terminal:
            console.width = WIDTH
        console.print(table)
    return BAD_INPUT if unread else FINISHED


def predictions(
    found: Saved, names: Iterable[str], batch_size: int, device: torch.device, top: int = 5
) -> Iterator[Prediction | Unread]:
    """What a network says of image files, in their order.

    Args:
        found: the network, on ``device``.
        names: of the files, read as they are needed.
        batch_size: images that go through the network together.
        device: of the network.
        top: classes of each image, fewer where the network has fewer.
    """
    names = iter(names)
    while chunk := list(itertools.islice(names, batch_size)):
        read = [_read(name, found) for name in chunk]
        crops = [crop for crop in read if isinstance(crop, np.ndarray)]
        rows: Iterator[tuple[Tensor, Tensor]] = iter(())
        if crops:
            shares = probabilities(found, torch.from_numpy(np.stack(crops)), device)
            rows = zip(*shares.sort(descending=True, stable=True), strict=True)
        for name, crop in zip(chunk, read, strict=True):
            if isinstance(crop, Unread):
                yield crop
            else:
                best, classes = next(rows)
                yield Prediction(name, classes[:top].tolist(), best[:top].tolist())


def files(names: Iterable[str]) -> Iterator[str]:
    """The files that names on a command line stand for.

    Args:
        names: files, folders (the images below them, in order of their names), or ``-`` for names on
            standard input.

    Raises:
        UserError: a folder without images.
    """
    for name in names:
        if name == "-":
            yield from files(line.rstrip("\n") for line in sys.stdin if line.strip())
        elif Path(name).is_dir():
            there = sorted(p for p in Path(name).rglob("*") if p.suffix.lower() in SUFFIXES)
            if not there:
                raise UserError(f"{name}: no images in this folder; name files, or another folder")
            yield from map(str, there)
        else:
            yield name


def _read(name: str, found: Saved) -> npt.NDArray[np.uint8] | Unread:
    """What the evaluation sees of an image file."""
    try:
        pixels = photos.decode(Path(name).read_bytes(), found.upright)
    except OSError as error:
        return Unread(name, error.strerror or str(error))
    except photos.BadImage as error:
        return Unread(name, str(error))
    return crop_of(pixels, found)


def crop_of(pixels: npt.NDArray[np.uint8], found: Saved) -> npt.NDArray[np.uint8]:
    """What the evaluation sees of an image.

    Args:
        pixels: uint8 [height, width, 3].
        found: the network, whose settings say what it sees.

    Returns:
        uint8 [resolution, resolution, 3].

    Raises:
        UserError, OSError: see :func:`ffcv_r50.data.photos.center_crop`.
    """
    validation = found.config.validation
    return photos.center_crop(pixels, validation.resolution, validation.crop_ratio)


@torch.inference_mode()
def probabilities(found: Saved, crops: Tensor, device: torch.device) -> Tensor:
    """What a network makes of images that are cropped already, in float32 on every device.

    Args:
        found: the network, on ``device``.
        crops: uint8 [n, height, width, 3].
        device: of the network.

    Returns:
        float32 [n, classes] on the CPU.
    """
    images, tta = crops.to(device).permute(0, 3, 1, 2), found.config.validation.tta
    forward = Forward(device, found.config.data.statistics)
    logits = logits_of(found.network, images, Precision("fp32", device), tta, forward)
    return logits.softmax(1).cpu()


def _row(result: Prediction | Unread, classes: Sequence[str]) -> dict[str, object]:
    if isinstance(result, Unread):
        return {"image": result.image, "error": result.reason}
    top = [
        {"class": number, "name": classes[number], "probability": share}
        for number, share in zip(*result[1:], strict=True)
    ]
    return {"image": result.image, "top": top}


def device_of(name: str | None) -> torch.device:
    """The device that somebody named, or the usual one.

    Raises:
        UserError: there is none of this name.
    """
    try:
        device = torch.device(name or _usual())
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"command line: --device={name}: cannot be used ({reason})") from error
    return device


def _usual() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


if __name__ == "__main__":
    main()
