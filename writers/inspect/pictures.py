"""Images of a dataset as files."""

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ffcv_r50.data import samples
from ffcv_r50.data.beton import MODE_JPEG, Beton
from ffcv_r50.errors import UserError, one_line
from ffcv_r50.files import atomic_write
from writers.inspect import reading

SIDE = 64
"""Pixels of a thumbnail's longer side."""
LINE = 12
"""Pixels below it for the name of the class."""
ROOM = 4
"""Pixels between thumbnails."""


def extract(dataset: Beton, sample: int, output: str | None) -> None:
    """Write what is stored of a sample, and say what it is.

    Raises:
        UserError: there is no such sample, or the file cannot be written.
    """
    if sample >= dataset.num_samples:
        raise UserError(f"{dataset.path}: has {dataset.num_samples:,} samples, none is {sample:,}")
    data = dataset.read(sample)
    is_jpeg = dataset.modes[sample] == MODE_JPEG
    suffix = ".jpg" if is_jpeg else ".png"
    path = Path(output or f"{dataset.path.stem}_{sample}{suffix}")
    if not is_jpeg:
        buffer = io.BytesIO()
        Image.fromarray(reading.decode(dataset, sample, data)).save(buffer, "PNG")
        data = buffer.getvalue()
    _write(path, data)
    label = int(dataset.labels[sample])
    of = dataset.sidecar.names[label] if dataset.sidecar else label
    lines = samples.read(dataset.path, dataset.num_samples) or ()
    name = next((line.name for i, line in enumerate(lines) if i == sample), "no name known")
    print(f"{path}: sample {sample:,} ({one_line(name)}), class {one_line(str(of))}")


def thumbnails(dataset: Beton, path: Path) -> None:
    """Draw the first sample of each class, in a square grid from left to right.

    Raises:
        UserError: the file cannot be written.
    """
    count = dataset.num_classes
    names = dataset.sidecar.names if dataset.sidecar else [str(i) for i in range(count)]
    columns = math.ceil(math.sqrt(count))
    width, height = SIDE + ROOM, SIDE + LINE + ROOM
    grid = Image.new("RGB", (columns * width, -(-count // columns) * height), "white")
    draw = ImageDraw.Draw(grid)
    first = dict(
        zip(*(a.tolist() for a in np.unique(dataset.labels, return_index=True)), strict=True)
    )
    for label, name in enumerate(names):
        left, top = label % columns * width, label // columns * height
        if label in first:
            grid.paste(_small(dataset, first[label]), (left, top))
        short = one_line(name)
        while draw.textlength(short) > SIDE:
            short = short[:-1]
        draw.text((left, top + SIDE), short, fill="black")
    buffer = io.BytesIO()
    grid.save(buffer, "PNG")
    _write(path, buffer.getvalue())
    print(f"{path}: the first image of each of {count:,} classes")


def _small(dataset: Beton, sample: int) -> Image.Image:
    """A thumbnail; gray where the sample cannot be decoded."""
    try:
        image = Image.fromarray(reading.decode(dataset, sample, dataset.read(sample)))
    except reading.Damaged:
        return Image.new("RGB", (SIDE, SIDE), "gray")
    image.thumbnail((SIDE, SIDE))
    return image


def _write(path: Path, data: bytes) -> None:
    try:
        with atomic_write(path) as file:
            file.write(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another") from error
