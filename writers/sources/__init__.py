"""Where images come from, by the names that ``cfg.dataset`` uses.

A source is one file here: a class of :class:`SourceOptions` that registers its name and builds a
:class:`Source`. It lists its images in the main process, which gives each worker process what reads
the next few of them.
"""

from collections.abc import Callable, Sequence
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
        """Of each image, unique: errors say ``root/name``, and draws follow from it."""
        ...

    @property
    def labels(self) -> Sequence[int]:
        """Of each image."""
        ...

    @property
    def ignored(self) -> int:
        """Files below ``root`` that are not taken for images."""
        ...

    def reader(self, index: int) -> Read:
        """What reads one image in a worker process.

        It is pickled, so it says where the image lies and no more: a ``functools.partial`` of a
        function of the module and, say, a shard's path and the image's position. Files that serve
        many images can stay open in the worker (``functools.cache``).
        """
        ...


class SourceOptions(Options):
    """A kind of source."""

    def build(self, data_dir: str, split: str) -> Source:
        """List the images.

        Args:
            data_dir: where they are, as the user says it.
            split: ``train`` or ``val``.

        Raises:
            UserError: there is nothing of this kind.
        """
        raise NotImplementedError


SOURCES: Registry[SourceOptions] = Registry("dataset")

from writers.sources import image_folder  # noqa: E402, F401  # registers itself
