"""Image files whose classes are said by another file, not by their folders."""

import functools
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from ffcv_r50.errors import UserError
from writers.sources import Read
from writers.sources.image_folder import EXTENSIONS, read_file


@dataclass(frozen=True)
class Files:
    """Image files anywhere; a :class:`~writers.sources.Source`."""

    root: Path
    classes: Sequence[str]
    names: Sequence[str]
    labels: Sequence[int]
    ignored: int
    folder: Path
    paths: Sequence[str]
    """Of each image, relative to ``folder`` or absolute."""

    def place(self, index: int) -> str:
        """The file."""
        return os.path.join(self.folder, self.paths[index])

    def reader(self, index: int) -> Read:
        """See :func:`~writers.sources.image_folder.read_file`."""
        return functools.partial(read_file, self.place(index))


def has_folders(folder: Path) -> bool:
    """Whether there are folders in it, but for hidden ones: they may be classes."""
    return any(entry.is_dir() and entry.name[0] != "." for entry in list(os.scandir(folder)))


def is_image(name: str) -> bool:
    """Whether torchvision takes a file of this name for an image."""
    return name.lower().endswith(EXTENSIONS)


def read_text(path: Path) -> str:
    """The content of a text file of the dataset; bytes that are not UTF-8 stay as Python has them in
    file names.
    """
    return path.read_text("utf-8-sig", errors="surrogateescape")


def labelled(
    folder: Path, labels: Mapping[str, int], classes: Sequence[str], said_by: Path
) -> Files:
    """The images that lie directly in a folder, in the order that ImageFolder would give them if each
    lay in a folder of its class.

    Args:
        folder: of the images.
        labels: file name -> position in ``classes``.
        classes: names in label order.
        said_by: the file that says the labels.

    Raises:
        UserError: an image has no label, or a label no image.
        OSError: the folder cannot be listed.
    """
    files = [entry.name for entry in list(os.scandir(folder)) if entry.is_file()]
    images = {name for name in files if is_image(name)}
    check_all_labelled(folder, images, labels.keys(), str(said_by))
    paths = sorted(images, key=lambda name: (labels[name], name))
    return Files(
        root=folder,
        classes=classes,
        names=[f"{classes[labels[name]]}/{name}" for name in paths],
        labels=[labels[name] for name in paths],
        ignored=len(files) - len(images),
        folder=folder,
        paths=paths,
    )


def check_all_labelled(holder: Path, images: Set[str], labelled: Set[str], said_by: str) -> None:
    """See that each image has a label and each label an image.

    Raises:
        UserError: one has not.
    """
    without = images - labelled
    if without:
        raise UserError(
            f"{holder}: {len(without):,} of {len(images):,} images have no label in {said_by}, the "
            f"first is {min(without)}; add them or remove the images"
        )
    missing = labelled - images
    if missing:
        raise UserError(
            f"{holder}: {len(missing):,} of the {len(labelled):,} images that {said_by} labels are "
            f"not there, the first is {min(missing)}; the download is incomplete"
        )
