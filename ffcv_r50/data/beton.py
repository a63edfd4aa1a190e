"""The ``.beton`` file: FFCV's format, version 2, read in one pass and checked as it is opened.

Layout (little endian, as ``ffcv.types`` of FFCV 1.0.2 declares it)::

    header               version, number of fields, page size, number of samples, table position
    field descriptors    per field: type, name, arguments
    metadata             per sample: one aligned record, a member per field
    pages                the pixels or JPEG bytes; a sample never crosses a page
    allocation table     per stored block: sample, position, size

What the format cannot hold (class names, settings, skipped files) lies in ``<file>.json`` beside
it, see :class:`Sidecar`.
"""

import functools
import hashlib
import json
import os
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ffcv_r50.data import names
from ffcv_r50.errors import RunFault, UserError
from ffcv_r50.files import read_json, regular_file

FORMAT_VERSION = 2

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
FIELD = np.dtype([("type_id", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)])
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])

IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
INT = np.dtype("<i8")

MODE_JPEG = 0
MODE_RAW = 1

TYPE_INT = 1
TYPE_IMAGE = 2
MAX_SAMPLES = 1 << 32
"""More have no room in a view, see :class:`ffcv_r50.data.loader.ImageTransform`."""
MAX_CLASSES = 100_000
"""More than this, and more than there are samples: no labels but numbers of something else."""
_BLOCK = np.dtype([("ptr", "<u8"), ("size", "<u8")])
_FIELD_METADATA = {
    0: np.dtype("<f8"),
    TYPE_INT: INT,
    TYPE_IMAGE: IMAGE,
    3: _BLOCK,  # bytes
    4: np.dtype("<u8"),  # array
    5: _BLOCK,  # JSON
    6: np.dtype("<u8"),  # torch tensor
}


def metadata_dtype(type_ids: list[int]) -> np.dtype[np.void]:
    """The record that holds one sample's metadata, for fields of these types in this order."""
    return np.dtype([(f"f{i}", _FIELD_METADATA[t]) for i, t in enumerate(type_ids)], align=True)


_SIDECAR_KINDS = {
    "settings": dict,
    "versions": dict,
    "source": str,
    "skipped": list,
    "content": str,
    "words": dict,
}


def sidecar_path(beton: str | os.PathLike[str]) -> Path:
    """Where the sidecar of a ``.beton`` file lies: ``train.beton`` -> ``train.beton.json``."""
    return Path(f"{os.fspath(beton)}.json")


@dataclass(frozen=True)
class Sidecar:
    """What the format does not keep. Written beside the file by our writer, absent for others'."""

    classes: list[str]
    """Class names (ImageNet: wnids) in label order."""
    num_samples: int
    """Samples in the ``.beton`` file; a sidecar that disagrees belongs to another file."""
    class_counts: list[int]
    """Samples of each class, in label order."""
    kept: int = 0
    """Of the JPEGs, those with exactly the pixels of their source (`write_mode=keep`)."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The writer's settings."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the programs and libraries that wrote the file."""
    source: str = ""
    """The folder the images came from."""
    skipped: list[dict[str, str]] = field(default_factory=list)
    """Images left out: ``{"path": ..., "reason": ...}`` each."""
    content: str = ""
    """The file's :attr:`Identity.content`; empty in sidecars of earlier versions."""
    words: dict[str, str] = field(default_factory=dict)
    """What classes that are wnids mean, where the writer found it; left out of the file where empty."""

    @property
    def names(self) -> list[str]:
        """Of the classes in label order, to show to people."""
        return names.of_classes(self.classes, self.words)

    def to_json(self) -> bytes:
        """The bytes of the sidecar file."""
        content = asdict(self)
        if not self.words:
            del content["words"]
        return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()

    @staticmethod
    def read(beton: str | os.PathLike[str]) -> "Sidecar | None":
        """The sidecar of a ``.beton`` file, or None where there is none.

        Raises:
            UserError: it is there but is not a sidecar.
        """
        path = sidecar_path(beton)
        try:
            sidecar = Sidecar(**read_json(path))
            stored = sidecar.classes
            if not (
                isinstance(stored, list) and stored and all(isinstance(n, str) for n in stored)
            ):
                raise ValueError("its classes are no list of names")
            for name, kind in _SIDECAR_KINDS.items():
                if not isinstance(getattr(sidecar, name), kind):
                    raise ValueError(f"its {name} has another type")
            if not all(isinstance(text, str) for text in sidecar.words.values()):
                raise ValueError("its words have another type")
            return sidecar
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, OSError) as error:
            raise UserError(
                f"{path}: not a readable sidecar ({error}); write the dataset again or "
                "remove this file"
            ) from error


def content_digest(parts: Iterable[bytes | memoryview]) -> str:
    """BLAKE2b of them, one after the other, as 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


class Identity(NamedTuple):
    """What tells one dataset from another, wherever their files lie."""

    samples: int
    classes: int
    content: str
    """BLAKE2b, as 32 hexadecimal digits, of all that the file holds but pixels and JPEG bytes:
    header, fields, metadata (each sample's label, height, width and position), allocation table
    (each image's size)."""

    def difference(self, other: "Identity") -> str:
        """What differs from another dataset's: ``samples 70 -> 71``."""
        counts = [
            f"{name} {mine:,} -> {others:,}"
            for name, mine, others in zip(self._fields, self, other, strict=True)
            if name != "content" and mine != others
        ]
        return ", ".join(counts) or "other content"


class Beton:
    """A dataset of RGB images with integer labels, open for reading.

    Opening reads the metadata and the allocation table (some 60 bytes a sample). Any FFCV 1.0 file with an RGB image
    field and an int field qualifies; of several the ones named ``image`` and ``label`` count.

    Args:
        path: the ``.beton`` file.

    Raises:
        UserError: missing, unreadable, not a version 2 ``.beton`` file, truncated, left by a writer
            that did not finish, or without an image or a label.
    """

    path: Path
    num_samples: int
    page_size: int
    """Bytes; samples never cross a multiple of it counted from the first page."""
    modes: npt.NDArray[np.uint8]
    """[num_samples] MODE_JPEG or MODE_RAW."""
    heights: npt.NDArray[np.int32]
    widths: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    """[num_samples] position of the image's bytes in :attr:`bytes`."""
    sizes: npt.NDArray[np.int64]
    """[num_samples] number of the image's bytes."""
    labels: npt.NDArray[np.int64]
    length: int
    """Of the file, in bytes."""
    pages: range
    """The positions between the metadata and the allocation table, where the images lie."""
    descriptor: int
    """Of the open file, for ``pread``. Not mapped: a mapped file that becomes shorter (copied over, a
    failing network disk) ends the process by SIGBUS, without a word."""
    sidecar: Sidecar | None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.descriptor = regular_file(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self.descriptor)
            self._open(os.fstat(self.descriptor).st_size)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be read ({error.strerror}); check the path"
            ) from error
        self.sidecar = Sidecar.read(self.path)
        if self.sidecar is not None and self.sidecar.num_samples != self.num_samples:
            raise UserError(
                f"{sidecar_path(self.path)}: describes {self.sidecar.num_samples} samples, the "
                f"dataset has {self.num_samples}; it belongs to another file, remove it"
            )
        if self.num_classes > max(MAX_CLASSES, self.num_samples):
            raise UserError(
                f"{self.path}: its label field counts to {self.num_classes - 1:,}, so it does not hold "
                "classes; write the dataset again"
            )
        if self.labels.min() < 0 or self.labels.max() >= self.num_classes:
            raise UserError(
                f"{self.path}: labels run from {self.labels.min()} to {self.labels.max()}, expected "
                f"0 to {self.num_classes - 1}; write the dataset again"
            )

    @functools.cached_property
    def num_classes(self) -> int:
        """Number of classes: the sidecar's, or the highest label plus one."""
        if self.sidecar is not None:
            return len(self.sidecar.classes)
        return int(self.labels.max()) + 1

    @functools.cached_property
    def identity(self) -> Identity:
        """The same for every copy of this file."""
        # 0.1 s for ImageNet's 61 MB, once a node: no reason for a weaker hash.
        return Identity(self.num_samples, self.num_classes, content_digest(self._around_pages()))

    def _around_pages(self) -> Iterator[bytes]:
        for begin, end in ((0, self.pages.start), (self.pages.stop, self.length)):
            while begin < end:
                part = os.pread(self.descriptor, min(end - begin, 1 << 24), begin)
                if not part:
                    raise UserError(f"{self.path}: became shorter while it was read; copy it again")
                yield part
                begin += len(part)

    def read(self, sample: int) -> bytes:
        """The stored bytes of an image: a JPEG, or pixels [height, width, 3].

        Raises:
            RunFault: the file cannot be read any more, or has become shorter.
        """
        offset, size = int(self.offsets[sample]), int(self.sizes[sample])
        try:
            found = os.pread(self.descriptor, size, offset)
        except OSError as error:
            raise RunFault(
                f"{self.path}: cannot be read any more, at sample {sample} ({error.strerror})"
            ) from error
        if len(found) < size:
            length = os.fstat(self.descriptor).st_size
            raise RunFault(
                f"{self.path}: has become shorter since it was opened: sample {sample} should end at "
                f"byte {offset + size:,}, the file has {length:,}; copy it again"
            )
        return found

    def _open(self, length: int) -> None:
        """Read all but the pages, in the order in which the one says where the next lies."""

        def take(dtype: np.dtype[Any], count: int, position: int, what: str) -> npt.NDArray[Any]:
            """Records of the file; refused before memory is taken for what is not there."""
            end = position + dtype.itemsize * count
            if end > length:
                raise UserError(
                    f"{self.path}: truncated, its {what} should end at byte {end:,} but "
                    f"the file has {length:,}; copy or write it again"
                )
            records = np.empty(count, dtype)
            rest = memoryview(records.view(np.uint8))  # type: ignore[arg-type]
            while rest:
                got = os.preadv(self.descriptor, [rest], end - len(rest))
                if got == 0:
                    raise UserError(
                        f"{self.path}: became shorter while it was opened; copy it again"
                    )
                rest = rest[got:]
            return records

        header = self._header(take(HEADER, 1, 0, "header")[0])
        fields = take(FIELD, int(header["num_fields"]), HEADER.itemsize, "field list")
        image, label, dtype = self._fields(fields)
        begin = HEADER.itemsize + fields.nbytes
        metadata = take(dtype, self.num_samples, begin, "metadata")
        self.modes = np.ascontiguousarray(metadata[image]["mode"])
        self.heights = metadata[image]["height"].astype(np.int32)
        self.widths = metadata[image]["width"].astype(np.int32)
        self.labels = metadata[label].astype(np.int64)

        end = int(header["alloc_table_ptr"])
        if end > length or (length - end) % ALLOCATION.itemsize:
            raise UserError(
                f"{self.path}: truncated, its allocation table at byte {end:,} is not whole "
                f"in {length:,} bytes; copy or write it again"
            )
        table = take(ALLOCATION, (length - end) // ALLOCATION.itemsize, end, "allocation table")
        self.length, self.pages = length, range(begin + metadata.nbytes, end)
        self.offsets, self.sizes = self._blocks(metadata[image]["data_ptr"], table, self.pages)

    def _header(self, header: np.void) -> np.void:
        """See that a writer of this format made it.

        Raises:
            UserError: none did, or it did not finish.
        """
        if header["version"] != FORMAT_VERSION:
            raise UserError(
                f"{self.path}: not a .beton file of version {FORMAT_VERSION} (its first two bytes say "
                f"{header['version']})"
            )
        self.num_samples = int(header["num_samples"])
        self.page_size = int(header["page_size"])
        if self.num_samples == 0:
            raise UserError(f"{self.path}: holds no samples; write it again")
        if header["alloc_table_ptr"] == 0:
            raise UserError(f"{self.path}: its writer did not finish; write it again")
        if self.num_samples > MAX_SAMPLES or self.page_size == 0:
            raise UserError(
                f"{self.path}: damaged, its header says {self.num_samples:,} samples in pages of "
                f"{self.page_size:,} bytes; copy or write it again"
            )
        return header

    def _fields(self, fields: npt.NDArray[Any]) -> tuple[str, str, np.dtype[np.void]]:
        """The members of a sample's metadata for image and label, and their record.

        Raises:
            UserError: it is not clear which they are.
        """
        type_ids = [int(t) for t in fields["type_id"]]
        if unknown := sorted(set(type_ids) - set(_FIELD_METADATA)):
            raise UserError(f"{self.path}: has a field of unknown type {unknown[0]}")
        names = [bytes(name).rstrip(b"\0").decode(errors="replace") for name in fields["name"]]

        def place(type_id: int, name: str, what: str) -> str:
            found = [i for i, t in enumerate(type_ids) if t == type_id]
            if len(found) > 1:
                found = [i for i in found if names[i] == name]
            if len(found) != 1:
                raise UserError(
                    f"{self.path}: needs one {what}, or one of them named '{name}'; its fields are "
                    f"{', '.join(names)}"
                )
            return f"f{found[0]}"

        image = place(TYPE_IMAGE, "image", "RGB image field")
        label = place(TYPE_INT, "label", "int field for the label")
        return image, label, metadata_dtype(type_ids)

    def _blocks(
        self, offsets: npt.NDArray[np.uint64], table: npt.NDArray[Any], pages: range
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where the images lie, all inside of the pages: positions and sizes, [num_samples] each.

        Args:
            offsets: [num_samples] what the metadata say.
            table: whose rows hold the sizes, for images and other fields.
            pages: positions that samples may have.

        Raises:
            UserError: an image does not, or has another size than its pixels.
        """
        # All that is compared is unsigned and nothing is added: the file may hold any 64 bits.
        sizes = np.full(self.num_samples, np.iinfo(np.uint64).max, np.uint64)
        rows = table[table["sample_id"] < self.num_samples]
        rows = rows[rows["ptr"] == offsets[rows["sample_id"]]]
        sizes[rows["sample_id"]] = rows["size"]
        end = np.uint64(pages.stop)
        bad = (sizes > end) | (offsets < pages.start) | (offsets > end - np.minimum(sizes, end))
        bad |= (self.heights == 0) | (self.widths == 0) | (self.modes > MODE_RAW)
        raw = self.modes == MODE_RAW
        expected = self.heights[raw].astype(np.uint64) * self.widths[raw].astype(np.uint64)
        bad[raw] |= sizes[raw] != np.uint64(3) * expected
        if bad.any():
            raise UserError(
                f"{self.path}: damaged or truncated, sample {int(np.argmax(bad))} and {bad.sum() - 1:,} "
                "others do not lie inside it; copy or write it again"
            )
        return offsets.astype(np.int64), sizes.astype(np.int64)
