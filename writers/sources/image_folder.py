"""A tree of image files, ``<class>/<image>``, as torchvision's ImageFolder reads it."""

import functools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ffcv_r50.errors import UserError
from writers.sources import SOURCES, BadImage, Read, SourceOptions

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What torchvision takes for an image (``torchvision.datasets.folder.IMG_EXTENSIONS``)."""

SPLITS = ("train", "val")


@SOURCES.register("imagenet")
class ImageFolderOptions(SourceOptions):
    """Any tree `data_dir/<class>/<image>` or `data_dir/<split>/<class>/<image>`."""

    def build(self, data_dir: str, split: str) -> "ImageFolder":
        """List the tree."""
        return list_images(find_root(data_dir, split))


@dataclass(frozen=True)
class ImageFolder:
    """All images below a folder; a :class:`~writers.sources.Source`."""

    root: Path
    """The folder of the class folders."""
    classes: list[str]
    names: list[str]
    """Paths relative to ``root``."""
    labels: list[int]
    ignored: int
    """Files below ``root`` that are not images by their name, or lie outside of the classes."""

    def place(self, index: int) -> str:
        """The file."""
        return os.path.join(self.root, self.names[index])

    def reader(self, index: int) -> Read:
        """See :func:`read_file`."""
        return functools.partial(read_file, self.place(index))


def read_file(path: str) -> bytes:
    """The content of a regular file.

    Raises:
        BadImage: it is something else, as a pipe or a device.
        OSError: missing, or not readable.
    """
    # Opening a pipe would wait for somebody to write into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadImage("not a regular file")
        return file.read()


def find_root(data_dir: str, split: str) -> Path:
    """The folder of the classes: ``data_dir/split`` where there is one, else ``data_dir`` itself.

    Raises:
        UserError: no such folder, or it is the other split, or holds only that one.
    """
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise UserError(f"cfg.data_dir: {folder} is not a folder; check the path")
    if (folder / split).is_dir():
        return folder / split
    for other in SPLITS:
        if other != split and (folder / other).is_dir():
            raise UserError(
                f"cfg.data_dir: {folder} holds '{other}' but no '{split}'; pass --cfg.split={other} "
                "or the folder of the classes"
            )
        if other != split and folder.resolve().name == other:
            raise UserError(
                f"cfg.data_dir: {folder} looks like the split '{other}', not '{split}'; "
                f"pass --cfg.split={other}"
            )
    return folder


def list_images(root: Path) -> ImageFolder:
    """All images of ``root/<class>/...``, in the order of torchvision's ImageFolder.

    Raises:
        UserError: no class folders, some without images, or a folder that cannot be listed.
    """
    try:
        return _list_images(root)
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be listed ({error.strerror}); check its permissions"
        ) from error


def _list_images(root: Path) -> ImageFolder:
    entries = list(os.scandir(root))
    classes = sorted(entry.name for entry in entries if entry.is_dir())
    if not classes:
        raise UserError(f"{root}: has no class folders; expected {root}/<class>/<image>.JPEG")
    names: list[str] = []
    labels: list[int] = []
    empty = []
    ignored = len(entries) - len(classes)
    for label, class_name in enumerate(classes):
        before = len(names)
        for folder, files in sorted(_walk(root / class_name)):
            images = sorted(file for file in files if file.lower().endswith(EXTENSIONS))
            ignored += len(files) - len(images)
            inside = os.path.relpath(folder, root)
            names += [os.path.join(inside, file) for file in images]
        labels += [label] * (len(names) - before)
        if len(names) == before:
            empty.append(class_name)
    if empty:
        raise UserError(
            f"{root}: {len(empty)} of {len(classes)} class folders hold no images, the first is "
            f"'{empty[0]}'; fill or remove them ({', '.join(EXTENSIONS)} are images)"
        )
    return ImageFolder(root, classes, names, labels, ignored)


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder and its files. Links to folders are followed, but for those that lead around in
    circles (torchvision goes around until the system refuses).
    """
    ways = {str(top): [top.resolve()]}  # to each folder ahead: the real folders passed, and itself
    for folder, folders, files in os.walk(top, onerror=_refuse, followlinks=True):
        way = ways.pop(folder)
        inner = {name: Path(folder, name).resolve() for name in folders}
        folders[:] = [n for n in folders if not any(p.is_relative_to(inner[n]) for p in way)]
        ways |= {os.path.join(folder, n): [*way, inner[n]] for n in folders}
        yield folder, files


def _refuse(error: OSError) -> NoReturn:
    # os.walk would leave the folder out in silence.
    raise error
