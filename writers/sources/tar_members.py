"""Images inside tar archives, read in place: listed once, then by their offsets."""

import functools
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ffcv_r50.errors import UserError
from writers.sources import BadImage, Read

BLOCK = tarfile.BLOCKSIZE
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""How gzip, bzip2, xz and zstd files begin."""


class Member(NamedTuple):
    """A file in an archive."""

    name: str
    offset: int
    """Of its content in the archive's file, in bytes."""
    size: int
    """In bytes."""


@dataclass(frozen=True)
class TarMembers:
    """Images in tar archives; a :class:`~writers.sources.Source`."""

    root: Path
    classes: Sequence[str]
    names: Sequence[str]
    labels: Sequence[int]
    ignored: int
    members: Sequence[str]
    """Of each image: archive and member, as errors say them below ``root``."""
    archives: Sequence[Path]
    archive_of: Sequence[int]
    """Of each image, a position in ``archives``."""
    offsets: Sequence[int]
    sizes: Sequence[int]

    def place(self, index: int) -> str:
        """Archive and member."""
        return os.path.join(self.root, self.members[index])

    def reader(self, index: int) -> Read:
        """See :func:`read_range`."""
        archive = os.fspath(self.archives[self.archive_of[index]])
        return functools.partial(read_range, archive, self.offsets[index], self.sizes[index])


def read_range(path: str, offset: int, size: int) -> bytes:
    """A part of a file.

    Raises:
        BadImage: the file ends before it.
        OSError: it cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        content = os.pread(file.fileno(), size, offset)
    if len(content) != size:
        raise BadImage("the archive has become shorter")
    return content


def members(path: Path, within: Member | None = None) -> Iterator[Member]:
    """The regular files of an uncompressed tar archive, in its order.

    Headers are read one after the other and contents passed over, so this takes a read and about
    20 us for each file, and memory for one.

    Args:
        path: of the archive.
        within: the member of it that is an archive itself, and whose files are meant.

    Raises:
        UserError: it is no such archive, or truncated or damaged where its headers tell.
    """
    name = f"{path}/{within.name}" if within else str(path)
    start, size = (within.offset, within.size) if within else (0, None)
    try:
        with open(path, "rb") as file:
            end = os.fstat(file.fileno()).st_size if size is None else start + size
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # a kilobyte each
                    # A negative size would lead tarfile around in circles.
                    if member.size < 0 or member.offset_data + member.size > end:
                        raise UserError(_damaged(name, "ends inside", member.name))
                    if member.isreg() and not member.issparse():
                        yield Member(member.name, member.offset_data, member.size)
                # tarfile takes an archive that breaks off between two members, or goes on with
                # something that is no header, for one that ends there.
                file.seek(tar.offset)
                if file.read(BLOCK) != bytes(BLOCK):
                    raise UserError(_damaged(name, "has no end mark at", f"byte {tar.offset:,}"))
    except tarfile.TarError as error:
        with open(path, "rb") as file:
            packed = os.pread(file.fileno(), 6, start).startswith(COMPRESSED)
        raise UserError(
            f"{name}: is compressed, so images in it cannot be read in place; decompress it"
            if packed
            else f"{name}: not a whole tar archive ({error}); download it again"
        ) from error


def _damaged(name: str, what: str, where: str) -> str:
    return f"{name}: {what} {where}: truncated or damaged; download it again"
