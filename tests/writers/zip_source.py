"""A source that is not part of the toolkit: one file, which registers itself."""

import functools
import zipfile
from dataclasses import dataclass
from pathlib import Path

from writers.sources import SOURCES, BadImage, Read, SourceOptions


@SOURCES.register("zip")
class ZipOptions(SourceOptions):
    """An archive of `<class>/<image>`."""

    def build(self, data_dir: str, split: str) -> "Zip":
        """List the archive."""
        with zipfile.ZipFile(data_dir) as archive:
            names = sorted(archive.namelist())
        folders = [name.partition("/")[0] for name in names]
        classes = sorted(set(folders))
        return Zip(Path(data_dir), classes, names, [classes.index(folder) for folder in folders])


@dataclass(frozen=True)
class Zip:
    """The images of an archive."""

    root: Path
    classes: list[str]
    names: list[str]
    labels: list[int]
    ignored: int = 0

    def place(self, index: int) -> str:
        """Archive and member."""
        return f"{self.root}/{self.names[index]}"

    def reader(self, index: int) -> Read:
        """By its place in the archive."""
        return functools.partial(read, self.root, self.names[index])


@functools.cache
def opened(path: Path) -> zipfile.ZipFile:
    """Open as long as the worker lives."""
    return zipfile.ZipFile(path)


def read(path: Path, name: str) -> bytes:
    """One image file."""
    try:
        return opened(path).read(name)
    except zipfile.BadZipFile as error:
        raise BadImage(str(error)) from error
