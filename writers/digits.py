"""A small real dataset that needs no download: handwritten digits as a tree of JPEGs.

``python -m writers.digits FOLDER`` exports the 1,797 scans that come inside scikit-learn
(``sklearn.datasets.load_digits``): the test part of "Optical Recognition of Handwritten Digits" by
E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998, doi:10.24432/C50P49, licensed
CC BY 4.0. Each is 8 x 8 pixels of 17 gray levels; they are enlarged to 32 x 32 and stored as
``FOLDER/train/<digit>/*.JPEG`` and ``FOLDER/val/<digit>/*.JPEG``, as ImageNet would be.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ffcv_r50.errors import UserError, exit_with
from writers.selection import draw
from writers.sources.image_folder import SPLITS

SIDE = 32
"""Pixels of the exported images."""
QUALITY = 95
VAL_SHARE = 0.2
"""Of each digit's scans, rounded."""


def split(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """The fixed, stratified split: True for validation.

    Args:
        labels: int [samples].

    Returns:
        bool [samples]: of each label the ``VAL_SHARE`` of samples with the lowest draws.
    """
    draws = np.array([draw(0, "digits", str(i)) for i in range(len(labels))])
    is_val = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = round(VAL_SHARE * len(members))
        is_val[members[np.argsort(draws[members])[:count]]] = True
    return is_val


def export(folder: Path) -> None:
    """Write both splits below ``folder``; one that is there and whole is left as it is.

    Raises:
        UserError: scikit-learn is missing, or something else lies where a split should go.
    """
    try:
        from sklearn.datasets import load_digits  # an extra: only the demo needs it
    except ImportError as error:
        raise UserError("scikit-learn is missing; pip install scikit-learn") from error
    scans, labels = load_digits(return_X_y=True)
    is_val = split(labels)
    for name, members in zip(SPLITS, (~is_val, is_val), strict=True):
        target = folder / name
        wanted = {f"{labels[i]}/digit_{i:04d}.JPEG": scans[i] for i in np.flatnonzero(members)}
        if not target.exists():
            _export_split(target, wanted)
        elif {str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()} != {*wanted}:
            raise UserError(f"{target}: holds something else than the digits; remove it")
        print(f"{target}: {len(wanted):,} images of {len(np.unique(labels))} digits")


def _export_split(target: Path, scans: dict[str, npt.NDArray[np.float64]]) -> None:
    """Fill a temporary folder beside ``target`` and rename it: whole or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A killed export leaves its temporary folder; the next one clears it away.
    for left in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(left)
    temporary = Path(tempfile.mkdtemp(".tmp", f".{target.name}.", target.parent))
    temporary.chmod(0o755)
    try:
        for name, scan in scans.items():
            path = temporary / name
            path.parent.mkdir(exist_ok=True)
            gray = np.rint(scan.reshape(8, 8) * (255 / 16)).astype(np.uint8)
            large = Image.fromarray(gray).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            large.save(path, "JPEG", quality=QUALITY)
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary)
        raise


def main() -> None:
    """``python -m writers.digits FOLDER``."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise UserError("write: python -m writers.digits FOLDER")
    folder = Path(sys.argv[1])
    try:
        export(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another") from error


if __name__ == "__main__":
    exit_with(main)
