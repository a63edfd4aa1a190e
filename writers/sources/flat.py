"""A folder of images, and a table of their labels in it or beside it."""

import os
from pathlib import Path

from ffcv_r50.errors import UserError
from writers.sources import SOURCES, SourceOptions, tables
from writers.sources.files import Files, has_folders, is_image, labelled
from writers.sources.labels import Labels


@SOURCES.register("flat")
class FlatOptions(SourceOptions):
    """A folder of images without class folders, and a table of their labels: val/*.JPEG and val.txt."""

    @classmethod
    def recognises(cls, data_dir: Path, split: str) -> bool:
        """Images beside each other, and one table."""
        folder = _images(data_dir, split)
        return (
            folder.is_dir()
            and not has_folders(folder)
            and any(is_image(entry.name) for entry in list(os.scandir(folder)))
            and len(_tables(folder, split)) == 1
        )

    def build(self, data_dir: str, split: str) -> Files:
        """List the folder."""
        folder = _images(Path(data_dir).expanduser(), split)
        if not folder.is_dir():
            raise UserError(f"cfg.data_dir: {folder} is not a folder; check the path")
        found = _tables(folder, split)
        if len(found) != 1:
            names = ", ".join(str(table) for table in found) or "none"
            raise UserError(
                f"{folder}: needs one table of its labels, found {names}; expected {split}.txt, "
                f"{split}.csv or the like in it or beside it"
            )
        return list_images(folder, found[0])


def _images(data_dir: Path, split: str) -> Path:
    return data_dir / split if (data_dir / split).is_dir() else data_dir


def _tables(folder: Path, split: str) -> list[Path]:
    """What may be the table of labels: ``val.txt``, ``val_labels.csv``, ``labels.parquet``, ...; beside
    the folder also in ``meta/``.
    """
    places = (folder, folder.parent, folder.parent / "meta")
    names = [
        f"{name}{suffix}"
        for name in (split, f"{split}_labels", "labels")
        for suffix in tables.SUFFIXES
    ]
    return [path for place in places for name in names if (path := place / name).is_file()]


def list_images(folder: Path, table: Path) -> Files:
    """The images of a folder, class by class.

    Classes are the folders of ``train`` beside it, where there are any, so that both splits have the
    same; numbers in the table count these. Otherwise see :meth:`Labels.resolve`.

    Raises:
        UserError: see :func:`tables.rows`, :func:`labelled`; or an image is in the table twice.
    """
    labels = Labels()
    files: dict[str, int] = {}  # in the order of the rows
    for number, row in enumerate(tables.rows(table), 1):
        name = os.path.basename(row.path)
        if files.setdefault(name, number) != number:
            raise UserError(
                f"{table}, row {number:,}: {name} is there already, in row {files[name]:,}; remove one"
            )
        labels.add(row.label)
    classes, numbers = labels.resolve(
        lambda i: f"{table}, row {i + 1:,}", _classes_of_train(folder)
    )
    return labelled(folder, dict(zip(files, numbers, strict=True)), classes, table)


def _classes_of_train(folder: Path) -> list[str] | None:
    train = folder.parent / "train"
    if train == folder or not train.is_dir():
        return None
    return sorted(entry.name for entry in os.scandir(train) if entry.is_dir()) or None
