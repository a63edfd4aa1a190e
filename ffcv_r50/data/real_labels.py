"""Several right classes for each validation image: ReaL (Beyer et al. 2020, arXiv:2006.07159).

The file is theirs (``real.json``): a JSON list of lists of class numbers, the first of the image
``ILSVRC2012_val_00000001.JPEG``. Numbers count the classes in the order of their names. An image with an
empty list has no right class and does not count.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ffcv_r50.data import samples
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import UserError
from ffcv_r50.files import read_json

IMAGE = re.compile(r"(?:.*/)?ILSVRC2012_val_([0-9]{8})\.\w+")


class Score(NamedTuple):
    """How many images were right."""

    images: int
    """Those that have a right class."""
    top_1: int
    top_5: int


def read(
    path: Path, classes: Sequence[str], val_set: Beton, names_from: str | os.PathLike[str]
) -> list[set[int]]:
    """The right classes of each sample of a validation set, as its labels number them.

    Args:
        path: the JSON file.
        classes: their names in label order, all that the file may speak of.
        val_set: the samples.
        names_from: the ``.beton`` file beside which the names of its samples lie.

    Raises:
        UserError: the file has another form or classes that the dataset has not; or the samples are not
            ILSVRC's validation images, or nobody knows their names.
    """
    labels = sorted(range(len(classes)), key=classes.__getitem__)
    lists = _lists(path, len(labels))
    known = samples.read(names_from, val_set.num_samples)
    if known is None:
        raise UserError(
            f"{path}: its labels go by file names, and {samples.path_beside(names_from)}, which has those "
            f"of {val_set.path}, is not there; copy it there, or write the dataset again"
        )
    found = []
    for sample in known:
        image = IMAGE.fullmatch(sample.name)
        if not image or not 1 <= int(image[1]) <= len(lists):
            raise UserError(
                f"{val_set.path}: has an image '{sample.name}', {path} labels ILSVRC2012_val_00000001 to "
                f"{len(lists):08}; write it from files with the original names"
            )
        found.append({labels[number] for number in lists[int(image[1]) - 1]})
    if not any(found):
        raise UserError(f"{path}: has no label for any image of {val_set.path}; give another file")
    return found


def _lists(path: Path, num_classes: int) -> list[list[int]]:
    """The file's content, checked."""
    try:
        content: Any = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a JSON list of lists") from error
    if not isinstance(content, list) or not content:
        raise UserError(f"{path}: is not a JSON list of lists of class numbers, such as real.json")
    for number, right in enumerate(content, 1):
        if not isinstance(right, list) or any(type(label) is not int for label in right):
            raise UserError(f"{path}: entry {number:,} is not a list of class numbers")
        if right and not 0 <= min(right) <= max(right) < num_classes:
            raise UserError(
                f"{path}: entry {number:,} has a class that is not in 0 to {num_classes - 1}, those of "
                "data.val_dataset; give the labels of that dataset"
            )
    return content


def score(classes: npt.NDArray[np.integer[Any]], right: Sequence[set[int]]) -> Score:
    """Count the images whose first class is right, and those with a right one among the first five.

    Args:
        classes: [images, up to 5] the likeliest first.
        right: the right classes of each image; one without any does not count.
    """
    hits = [
        [number in known for number in row]
        for row, known in zip(classes.tolist(), right, strict=True)
        if known
    ]
    return Score(len(hits), sum(row[0] for row in hits), sum(any(row) for row in hits))
