"""WebDataset shards: tar archives in which the files of one sample follow each other."""

import os
import re
from array import array
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from ffcv_r50.errors import UserError
from ffcv_r50.files import parse_json
from writers.sources import SOURCES, BadImage, SourceOptions, shards
from writers.sources.files import is_image
from writers.sources.labels import Labels
from writers.sources.tar_members import Member, TarMembers, members, read_range

KEY = re.compile(r"(?:\./)?(?P<key>(?:.*/)?[^/.]+)\.(?P<extension>[^/]*)")
"""A file's sample and what it is of it: all after the first dot of its name."""
MOST_LABEL_BYTES = 1 << 20


@SOURCES.register("webdataset")
class WebDatasetOptions(SourceOptions):
    """WebDataset shards: tar archives of KEY.jpg and KEY.cls (or KEY.json with a `label`)."""

    @classmethod
    def recognises(cls, data_dir: Path, split: str) -> bool:
        """Archives in a folder without class folders."""
        return shards.are_there(data_dir, split, ".tar")

    def build(self, data_dir: str, split: str) -> TarMembers:
        """List the split's shards."""
        return list_shards(shards.find(data_dir, split, ".tar"))


def list_shards(archives: list[Path]) -> TarMembers:
    """The images of shards in one folder, in their order there.

    Raises:
        UserError: a shard is damaged, or a sample has not one image and a label, or is there twice.
    """
    root = archives[0].parent
    names: list[str] = []
    labels = Labels()
    archive_of, offsets, sizes = array("i"), array("q"), array("q")
    ignored = 0
    for number, archive in enumerate(archives):
        keys: set[str] = set()
        for key, files in _samples(archive):
            where = f"{archive}/{key}"
            if key in keys:
                raise UserError(f"{where}: is there twice; keys in a shard are unique")
            keys.add(key)
            images = [file for extension, file in files.items() if is_image(f".{extension}")]
            if len(images) != 1:
                raise UserError(f"{where}: has {len(images)} images ({', '.join(files)}), not one")
            names.append(f"{archive.name}/{images[0].name}")
            labels.add(_label(archive, key, files))
            archive_of.append(number)
            offsets.append(images[0].offset)
            sizes.append(images[0].size)
            ignored += len(files) - 1 - ("cls" in files or "json" in files)
    if not names:
        raise UserError(f"{archives[0]}: holds no samples (KEY.jpg and KEY.cls)")
    classes, numbers = labels.resolve(lambda i: os.path.join(root, names[i]))
    return TarMembers(
        root=root,
        classes=classes,
        names=names,
        labels=numbers,
        ignored=ignored,
        members=names,
        archives=archives,
        archive_of=archive_of,
        offsets=offsets,
        sizes=sizes,
    )


def _samples(archive: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Key and files by extension of each sample."""
    named = ((KEY.fullmatch(member.name), member) for member in members(archive))
    # What begins with two underscores is about the shard.
    found = ((m, file) for m, file in named if m and not _base(m["key"]).startswith("__"))
    for key, group in groupby(found, lambda entry: entry[0]["key"]):
        files: dict[str, Member] = {}
        for match, member in group:
            if files.setdefault(match["extension"].lower(), member) is not member:
                raise UserError(
                    f"{archive}/{member.name}: is there twice; keys in a shard are unique"
                )
        yield key, files


def _base(key: str) -> str:
    return key.rpartition("/")[2]


def _label(archive: Path, key: str, files: dict[str, Member]) -> str:
    """What a sample's ``cls`` or ``json`` says: a class name, or a number as text."""
    member = files.get("cls") or files.get("json")
    if member is None:
        raise UserError(
            f"{archive}/{key}: has no label, only {', '.join(files)}; expected {key}.cls, or "
            f"{key}.json with a 'label'"
        )
    try:
        if member.size > MOST_LABEL_BYTES:
            raise ValueError(f"has {member.size:,} bytes")
        content = read_range(os.fspath(archive), member.offset, member.size)
        if "cls" in files:
            return content.decode().strip()
        return _label_of(parse_json(content))
    except (ValueError, BadImage, OSError) as error:
        raise UserError(f"{archive}/{member.name}: is no label ({error})") from error


def _label_of(entry: Any) -> str:
    label = entry.get("label") if isinstance(entry, dict) else None
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise ValueError("has no 'label' that is a class name or a number")
    return str(label)
