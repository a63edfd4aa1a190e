"""The fields of a ``.beton`` file: what each sample has, by name and type."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ffcv_r50.data import beton

IMAGE, LABEL, INDEX = "image", "label", "index"
"""Names; the first two are those of ffcv-imagenet."""

_TYPES = ("float", "int", "RGB image", "bytes", "array", "JSON", "torch tensor")


def image_and(*ints: str) -> npt.NDArray[Any]:
    """Descriptors of an RGB image and of int fields of these names, in this order."""
    fields = np.zeros(1 + len(ints), beton.FIELD)
    fields["type_id"] = [beton.TYPE_IMAGE, *(beton.TYPE_INT for _ in ints)]
    for field, name in zip(fields, (IMAGE, *ints), strict=True):
        field["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
    return fields


def of_file(path: Path) -> npt.NDArray[Any]:
    """Descriptors of the fields of a file that :class:`~ffcv_r50.data.beton.Beton` takes."""
    (header,) = np.fromfile(path, beton.HEADER, 1)
    return np.fromfile(path, beton.FIELD, int(header["num_fields"]), offset=header.nbytes)


def described(fields: npt.NDArray[Any]) -> str:
    """``image (RGB image), label (int)``."""
    return ", ".join(
        f"{bytes(field['name']).rstrip(bytes(1)).decode(errors='replace')} ({_TYPES[field['type_id']]})"
        for field in fields
    )
