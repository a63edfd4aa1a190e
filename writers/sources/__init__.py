"""Where images come from, by the names that ``cfg.dataset`` uses.

A source is one file here: a class of :class:`SourceOptions` that registers its name and builds a
:class:`Source`. It lists its images in the main process, which gives each worker process what reads
the next few of them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ffcv_r50.data.photos import BadImage as BadImage  # what sources raise
from ffcv_r50.registry import Options, Registry

Read = Callable[[], bytes]
"""Gives the content of one image file, in any format that Pillow knows. Raises :class:`BadImage` or
OSError where it cannot."""


class Source(Protocol):
    """Labelled images in the order they are written."""

    @property
    def root(self) -> Path:
        """The folder or file that holds all of them."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """Names in label order."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Of each image, unique; draws follow from it. Where an image has a file name of its own and
        a class, ``<class>/<file>``: then any source of the same images draws the same.
        """
        ...

    @property
    def labels(self) -> Sequence[int]:
        """Of each image."""
        ...

    @property
    def ignored(self) -> int:
        """Files below ``root`` that are not taken for images."""
        ...

    def place(self, index: int) -> str:
        """Where an image lies, as errors say it: its file, or its archive and what it is called there."""
        ...

    def reader(self, index: int) -> Read:
        """What reads one image in a worker process.

        It is pickled, so it says where the image lies and no more: a ``functools.partial`` of a
        function of the module and, say, a shard's path and the image's position.
        """
        ...


class SourceOptions(Options):
    """A kind of source. The first line of its docstring is shown where it is recognised."""

    @classmethod
    def recognises(cls, data_dir: Path, split: str) -> bool:
        """Whether ``data_dir`` is of this kind, and nothing that `imagenet` could write.

        Looks at names and no more. Raises OSError where it may not.
        """
        return False

    def build(self, data_dir: str, split: str) -> Source:
        """List the images.

        Args:
            data_dir: where they are, as the user says it.
            split: ``train`` or ``val``.

        Raises:
            UserError: there is nothing of this kind, or it is known to be incomplete or damaged.
        """
        raise NotImplementedError

    def words(self, data_dir: str) -> Mapping[str, str]:
        """What wnids mean, where a file in ``data_dir`` or the folder above says it; may know others."""
        path = Path(data_dir).expanduser().absolute()
        return words.beside([path, path.parent])


SOURCES: Registry[SourceOptions] = Registry("dataset")
DEFAULT = "imagenet"
"""What `data_dir` is where no other kind recognises it."""


def recognised(data_dir: str, split: str) -> str:
    """The kind of source that ``data_dir`` is; prints a line where it is not :data:`DEFAULT`.

    Raises:
        OSError: a folder cannot be read.
    """
    path = Path(data_dir).expanduser()
    name = next((n for n in SOURCES.names if SOURCES[n].recognises(path, split)), DEFAULT)
    if name != DEFAULT:
        kind = (SOURCES[name].__doc__ or "").partition("\n")[0].rstrip(".")
        print(f"recognised {path} as --cfg.dataset={name}: {kind}")
    return name


# Each registers itself. Recognition asks them in this order (but image_folder, which others use).
from writers.sources import (  # noqa: E402
    flat,  # noqa: F401
    ilsvrc_tars,  # noqa: F401
    image_folder,  # noqa: F401
    kaggle,  # noqa: F401
    manifest,  # noqa: F401
    parquet,  # noqa: F401
    tiny_imagenet,  # noqa: F401
    webdataset,  # noqa: F401
    words,
)
