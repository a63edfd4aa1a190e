"""Kaggle's download of ILSVRC (imagenet-object-localization-challenge), unpacked."""

import csv
from pathlib import Path

from ffcv_r50.errors import UserError
from writers.sources import SOURCES, SourceOptions
from writers.sources.files import Files, labelled, read_text
from writers.sources.image_folder import ImageFolder, list_images

IMAGES = "ILSVRC/Data/CLS-LOC"
SOLUTION = "LOC_val_solution.csv"


@SOURCES.register("kaggle")
class KaggleOptions(SourceOptions):
    """Kaggle's ILSVRC/Data/CLS-LOC, with LOC_val_solution.csv beside ILSVRC for `val`."""

    @classmethod
    def recognises(cls, data_dir: Path, split: str) -> bool:
        """The folder that the archive was unpacked in."""
        return (data_dir / IMAGES).is_dir()

    def build(self, data_dir: str, split: str) -> ImageFolder | Files:
        """List the class folders of ``train``, or the files of ``val``."""
        folder = Path(data_dir).expanduser()
        images = folder / IMAGES / split
        if not images.is_dir():
            raise UserError(f"cfg.data_dir: there is no folder {images}; check the path")
        return list_images(images) if split == "train" else list_val(images, folder / SOLUTION)


def list_val(images: Path, solution: Path) -> Files:
    """The images of ``val``.

    Args:
        images: their folder.
        solution: a table of ``ImageId`` and ``PredictionString``: wnid and box of each object, which
            are of one class (``n03995372 85 1 499 272``).

    Raises:
        UserError: there is no such table, or it does not belong to the images.
    """
    try:
        rows = list(csv.reader(read_text(solution).splitlines()))
    except csv.Error as error:
        raise UserError(f"{solution}: is no CSV ({error}); download it again") from error
    if not rows or rows[0] != ["ImageId", "PredictionString"]:
        raise UserError(
            f"{solution}: does not begin with ImageId,PredictionString; download it again"
        )
    wnids: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != 2 or not row[1].split():
            raise UserError(
                f"{solution}, line {number}: is not 'image,wnid box'; download it again"
            )
        if row[0] in wnids:
            raise UserError(
                f"{solution}, line {number}: {row[0]} is there twice; download it again"
            )
        wnids[row[0]] = row[1].split()[0]
    classes = sorted(set(wnids.values()))
    labels = {name: label for label, name in enumerate(classes)}
    return labelled(images, {f"{i}.JPEG": labels[w] for i, w in wnids.items()}, classes, solution)
