"""Which images are written, of which source and classes, and in which order; draws that follow from a seed
and the images' names."""

import hashlib
import heapq
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ffcv_r50.errors import UserError, nearest
from writers.config import Writing
from writers.sources import SOURCES, Read, Source, recognised
from writers.sources.files import read_text


def source(cfg: Writing) -> tuple[Writing, Source]:
    """The images that settings name, and the settings with the ``dataset`` that was recognised.

    Raises:
        UserError: they are not there, or incomplete, or ``cfg.classes`` names others.
    """
    try:
        name = cfg.dataset or recognised(cfg.data_dir, cfg.split)
        images = SOURCES[name]().build(cfg.data_dir, cfg.split)
    except OSError as error:
        where = error.filename or cfg.data_dir
        raise UserError(f"{where}: cannot be read ({error.strerror or error})") from error
    if cfg.classes is not None:
        images = of_classes(images, Path(cfg.classes).expanduser())
    return cfg.model_copy(update={"dataset": name}), images


def words(cfg: Writing, classes: Sequence[str]) -> dict[str, str]:
    """What those of the classes mean that are wnids, as far as the dataset's files say it.

    Args:
        cfg: as :func:`source` returns it.
        classes: of the source.
    """
    assert cfg.dataset is not None, "which was recognised"
    known = SOURCES[cfg.dataset]().words(cfg.data_dir)
    return {name: known[name] for name in classes if name in known}


@dataclass(frozen=True)
class ChosenClasses:
    """The images of some classes of a source, in its order; a :class:`~writers.sources.Source`."""

    whole: Source
    classes: Sequence[str]
    names: Sequence[str]
    labels: Sequence[int]
    indices: Sequence[int]
    """Of each image, its place in ``whole``."""

    @property
    def root(self) -> Path:
        """The folder or file of the source."""
        return self.whole.root

    @property
    def ignored(self) -> int:
        """As many as of the source."""
        return self.whole.ignored

    def place(self, index: int) -> str:
        """As the source says it."""
        return self.whole.place(self.indices[index])

    def reader(self, index: int) -> Read:
        """The source's."""
        return self.whole.reader(self.indices[index])


def of_classes(whole: Source, file: Path) -> ChosenClasses:
    """The images of the classes that a text file lists, one a line; the first gets label 0.

    Raises:
        UserError: the file cannot be read, lists none, or one twice, or one that is not in the source.
    """
    numbers = {name: number for number, name in enumerate(whole.classes)}
    label_of: dict[int, int] = {}
    try:
        lines = read_text(file).splitlines()
    except OSError as error:
        raise UserError(f"cfg.classes: {file}: cannot be read ({error.strerror})") from error
    for at, line in enumerate(lines, 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if (number := numbers.get(name)) is None:
            near = nearest(name, whole.classes)
            hint = f"did you mean {near}?" if near else f"its first is '{whole.classes[0]}'"
            raise UserError(
                f"cfg.classes: {file}, line {at}: {whole.root} has no class '{name}'; {hint}"
            )
        if number in label_of:
            raise UserError(f"cfg.classes: {file}, line {at}: '{name}' is there twice; remove one")
        label_of[number] = len(label_of)
    if not label_of:
        raise UserError(f"cfg.classes: {file} lists no classes; write one a line")
    indices = array("q", (i for i, label in enumerate(whole.labels) if label in label_of))
    return ChosenClasses(
        whole=whole,
        classes=[whole.classes[number] for number in label_of],
        names=[whole.names[i] for i in indices],
        labels=array("i", (label_of[whole.labels[i]] for i in indices)),
        indices=indices,
    )


def source_index(source: Source, index: int) -> int:
    """An image's place among all images of its source, with those of classes that are not taken."""
    return source.indices[index] if isinstance(source, ChosenClasses) else index


def draw(seed: int, purpose: str, name: str) -> float:
    """A number in [0, 1) that follows from its arguments alone (keyed BLAKE2b, 53 bits).

    Whether another image is there, is skipped or is encoded elsewhere has no influence on it.
    """
    key = f"{seed} {purpose}".encode()
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8, key=key).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def subset(source: Source, count: int, seed: int) -> Sequence[int]:
    """The ``count`` images with the lowest draw.

    Returns:
        Their indices in ``source``, ascending.

    Raises:
        UserError: there are fewer, or none are asked for.
    """
    total = len(source.names)
    if not 1 <= count <= total:
        raise UserError(f"cfg.subset: {source.root} has {total:,} images, cannot take {count:,}")
    return sorted(
        heapq.nsmallest(
            count, range(total), key=lambda i: (draw(seed, "subset", source.names[i]), i)
        )
    )


def shuffled(source: Source, indices: Sequence[int], seed: int) -> Sequence[int]:
    """``indices`` in the order of their draws."""
    draws = [draw(seed, "shuffle", source.names[i]) for i in indices]
    return [indices[at] for at in np.argsort(draws, kind="stable")]
