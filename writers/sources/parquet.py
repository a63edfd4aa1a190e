"""Images inside Parquet files, as the Hugging Face Hub has them."""

import functools
import os
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ffcv_r50.errors import UserError
from ffcv_r50.files import parse_json
from writers.sources import SOURCES, BadImage, Read, SourceOptions, arrow, shards
from writers.sources.labels import Labels


@SOURCES.register("parquet")
class ParquetOptions(SourceOptions):
    """Parquet shards of images and labels, as the Hugging Face Hub has them."""

    @classmethod
    def recognises(cls, data_dir: Path, split: str) -> bool:
        """Such files in a folder without class folders."""
        return shards.are_there(data_dir, split, ".parquet")

    def build(self, data_dir: str, split: str) -> "ParquetRows":
        """List the split's shards."""
        return list_shards(shards.find(data_dir, split, ".parquet"))


@dataclass(frozen=True)
class ParquetRows:
    """Images in Parquet files; a :class:`~writers.sources.Source`."""

    root: Path
    classes: Sequence[str]
    names: Sequence[str]
    """``<shard>/<row>``, which counts from 0."""
    labels: Sequence[int]
    ignored: int
    column: str
    """Of the images' bytes."""
    groups: Sequence[tuple[Path, int]]
    """Shard and row group, in the order of the images."""
    starts: Sequence[int]
    """The first image of each row group."""

    def place(self, index: int) -> str:
        """Shard and row."""
        return os.path.join(self.root, self.names[index])

    def reader(self, index: int) -> Read:
        """See :func:`read_row`."""
        group = bisect_right(self.starts, index) - 1
        shard, number = self.groups[group]
        row = index - self.starts[group]
        return functools.partial(read_row, os.fspath(shard), number, row, self.column)


def read_row(path: str, group: int, row: int, column: str) -> bytes:
    """One image.

    Raises:
        BadImage: its row group is damaged, or the row has no bytes.
    """
    content = _row_group(path, group, column)[row].as_py()
    if content is None:
        raise BadImage("has no bytes (a path alone, or nothing)")
    return bytes(content)


@functools.lru_cache(maxsize=1)
def _row_group(path: str, group: int, column: str) -> Any:
    """The images of a row group: neighbours are asked for after each other, so a worker process keeps
    one.
    """
    try:
        with arrow.open_file(Path(path)) as file:
            return file.read_row_group(group, [column], use_threads=False).flatten()[column]
    except UserError as error:
        raise BadImage(str(error)) from error
    except arrow.ERRORS as error:
        raise BadImage(f"row group {group} is damaged ({arrow.reason(error)})") from error


class _Schema(NamedTuple):
    """Which columns are meant."""

    image: str
    """Of the images' bytes, with a dot where it is a part of a structure."""
    label: str
    classes: list[str] | None
    """Their names, where the file says them."""


def list_shards(files: list[Path]) -> ParquetRows:
    """The images of shards in one folder, in their order there.

    Only labels are read. Class names are those of a ``ClassLabel`` that ``datasets`` noted in the
    schema; otherwise see :meth:`Labels.resolve`.

    Raises:
        UserError: a shard is damaged, or has other columns or classes than the first.
    """
    root = files[0].parent
    names: list[str] = []
    labels = Labels()
    groups: list[tuple[Path, int]] = []
    starts = array("q")
    schema = None
    for shard in files:
        with arrow.open_file(shard) as file:
            own = _schema(shard, file.schema_arrow)
            schema = schema or own
            if own != schema:
                raise UserError(
                    f"{shard}: has other columns or classes than {files[0].name}; they are of "
                    "different datasets"
                )
            row = 0
            for group in range(file.num_row_groups):
                groups.append((shard, group))
                starts.append(len(names))
                end = row + file.metadata.row_group(group).num_rows
                names += [f"{shard.name}/{i}" for i in range(row, end)]
                row = end
        for row, entry in enumerate(arrow.rows(shard, [own.label])):
            labels.add(_said(f"{shard}/{row}", entry[own.label], own.classes))
    if schema is None or not names:
        raise UserError(f"{files[0]}: holds no rows")
    classes, numbers = labels.resolve(lambda i: os.path.join(root, names[i]), schema.classes)
    return ParquetRows(root, classes, names, numbers, 0, schema.image, groups, starts)


def _said(place: str, label: Any, classes: Sequence[str] | None) -> str:
    """A row's class name, or its label as text; numbers of a ``ClassLabel`` count its names."""
    if label is None:
        return ""
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise UserError(f"{place}: label {label!r} is neither a number from 0 nor a class name")
    if classes is None or isinstance(label, str):
        return str(label)
    if not 0 <= label < len(classes):
        raise UserError(
            f"{place}: label {label} is out of range; there are {len(classes):,} classes"
        )
    return classes[label]


def _schema(shard: Path, schema: Any) -> _Schema:
    """The columns of images and labels.

    Raises:
        UserError: there is not one of each.
    """
    from pyarrow import types

    features = _features(schema.metadata or {})
    images = []
    for field in schema:
        if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            images.append(f"{field.name}.bytes")
        elif types.is_binary(field.type) or types.is_large_binary(field.type):
            images.append(field.name)
    labels = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    found = [name for name in labels or ["label"] if name in schema.names]
    if len(images) != 1 or len(found) != 1:
        raise UserError(
            f"{shard}: expected one column of images and one of labels, it has "
            f"{', '.join(schema.names)}"
        )
    names = features.get(found[0], {}).get("names")
    classes = [str(name) for name in names] if isinstance(names, list) else None
    return _Schema(images[0], found[0], classes)


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, dict[str, Any]]:
    """What ``datasets`` noted of each column; nothing where somebody else wrote the file."""
    try:
        features = parse_json(metadata[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
