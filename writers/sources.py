"""Which images go into a file, in which order, under which label."""

import hashlib
import heapq
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from ffcv_r50.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What torchvision takes for an image (``torchvision.datasets.folder.IMG_EXTENSIONS``)."""

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Source:
    """Labelled images in the order they are written."""

    root: Path
    """The folder of the class folders."""
    classes: list[str]
    """Names in label order."""
    paths: list[str]
    """Of each image, relative to ``root``."""
    labels: list[int]
    """Of each image."""
    ignored: int
    """Files below ``root`` that are not images by their name, or lie outside of the classes."""


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


def image_folder(root: Path) -> Source:
    """All images of ``root/<class>/...``, in the order of torchvision's ImageFolder.

    Raises:
        UserError: no class folders, some without images, or a folder that cannot be listed.
    """
    try:
        return _image_folder(root)
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be listed ({error.strerror}); check its permissions"
        ) from error


def _image_folder(root: Path) -> Source:
    entries = list(os.scandir(root))
    classes = sorted(entry.name for entry in entries if entry.is_dir())
    if not classes:
        raise UserError(f"{root}: has no class folders; expected {root}/<class>/<image>.JPEG")
    paths: list[str] = []
    labels: list[int] = []
    empty = []
    ignored = len(entries) - len(classes)
    for label, name in enumerate(classes):
        before = len(paths)
        for folder, files in sorted(_walk(root / name)):
            images = sorted(file for file in files if file.lower().endswith(EXTENSIONS))
            ignored += len(files) - len(images)
            inside = os.path.relpath(folder, root)
            paths += [os.path.join(inside, file) for file in images]
        labels += [label] * (len(paths) - before)
        if len(paths) == before:
            empty.append(name)
    if empty:
        raise UserError(
            f"{root}: {len(empty)} of {len(classes)} class folders hold no images, the first is "
            f"'{empty[0]}'; fill or remove them ({', '.join(EXTENSIONS)} are images)"
        )
    return Source(root, classes, paths, labels, ignored)


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


def draw(seed: int, purpose: str, path: str) -> float:
    """A number in [0, 1) that follows from its arguments alone (keyed BLAKE2b, 53 bits).

    Whether another image is there, is skipped or is encoded elsewhere has no influence on it.
    """
    key = f"{seed} {purpose}".encode()
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8, key=key).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def subset(source: Source, count: int, seed: int) -> Source:
    """The ``count`` images with the lowest draw, in their order; all classes keep their labels.

    Raises:
        UserError: there are fewer, or none are asked for.
    """
    total = len(source.paths)
    if not 1 <= count <= total:
        raise UserError(f"cfg.subset: {source.root} has {total:,} images, cannot take {count:,}")
    ranked = heapq.nsmallest(
        count, range(total), key=lambda i: (draw(seed, "subset", source.paths[i]), i)
    )
    kept = sorted(ranked)
    return replace(
        source, paths=[source.paths[i] for i in kept], labels=[source.labels[i] for i in kept]
    )
