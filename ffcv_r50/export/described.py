"""What others have to know of a network to use it: its images, its classes, where it comes from."""

import json
from pathlib import Path
from typing import Any

import ffcv_r50
from ffcv_r50.export.of_bytes import OfBytes
from ffcv_r50.files import atomic_write
from ffcv_r50.saved import Saved

FILE = "model.json"
"""What lies beside each export."""


def describe(saved: Saved) -> dict[str, Any]:
    """Plain values, for JSON.

    A network is given the central square of ``crop_ratio`` of the image's shorter side, resized to
    ``resolution`` (bilinear, anti-aliased, as Pillow does), in RGB; then, where ``input`` is float32,
    divided by 255, less ``mean``, over ``std``.
    """
    model, validation = saved.config.model, saved.config.validation
    statistics = saved.config.data.statistics
    takes_bytes = isinstance(saved.network, OfBytes)
    return {
        "arch": model.arch,
        "blurpool": model.blurpool,
        "weights": saved.name,
        "num_classes": len(saved.classes),
        "classes": saved.classes,
        "resolution": validation.resolution,
        "crop_ratio": validation.crop_ratio,
        "interpolation": "bilinear",
        "input": "uint8 [n, height, width, 3]" if takes_bytes else "float32 [n, 3, height, width]",
        "mean": list(statistics.mean),
        "std": list(statistics.std),
        "tta": validation.tta,
        "ffcv_r50": ffcv_r50.__version__,
    }


def write(description: dict[str, Any], folder: Path) -> None:
    """As :data:`FILE` in a folder."""
    with atomic_write(folder / FILE) as file:
        file.write((json.dumps(description, indent=1, ensure_ascii=False) + "\n").encode())


def text(description: dict[str, Any]) -> dict[str, str]:
    """For formats whose metadata are strings: what is none is JSON."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in description.items()
    }
