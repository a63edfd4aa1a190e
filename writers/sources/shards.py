"""Datasets that come as many files of samples: which of them belong to a split."""

import re
from itertools import count
from pathlib import Path

from ffcv_r50.errors import UserError
from writers.sources.files import has_folders

WORDS = {"train": {"train", "training"}, "val": {"val", "valid", "validation"}, "test": {"test"}}
"""Split -> how names of shards call it."""
OF = re.compile(r"(?P<before>.*?)(?P<number>\d+)-of-(?P<total>\d+).*")
"""``train-00003-of-00294.parquet``."""


def are_there(data_dir: Path, split: str, suffix: str) -> bool:
    """Whether ``data_dir`` is such a file, or a folder of them without folders that may be classes."""
    if data_dir.is_file():
        return data_dir.suffix == suffix
    folder = _folder(data_dir, split, suffix)
    return folder is not None and not has_folders(folder)


def find(data_dir: str, split: str, suffix: str) -> list[Path]:
    """The shards of a split, sorted by name.

    They lie in ``data_dir/<split>``, ``data_dir/data`` or ``data_dir``. Where their names say a split
    (``imagenet-train-000000.tar``, ``validation-00000-of-00014.parquet``), those of this one count.

    Args:
        data_dir: a folder, or one shard.
        split: ``train`` or ``val``.
        suffix: of their names, with the dot.

    Raises:
        UserError: there are none, or names say that there are more.
    """
    path = Path(data_dir).expanduser()
    if path.is_file():
        return [path]
    folder = _folder(path, split, suffix)
    if folder is None:
        raise UserError(f"cfg.data_dir: {path} holds no {suffix} files; check the path")
    shards = sorted(folder.glob(f"*{suffix}"))
    if folder != path / split:
        named = [shard for shard in shards if _splits_of(shard)]
        chosen = [shard for shard in named if split in _splits_of(shard)]
        if named and not chosen:
            raise UserError(
                f"cfg.data_dir: {folder} holds no {suffix} files of the split '{split}', but "
                f"{named[0].name}; check the path or --cfg.split"
            )
        shards = chosen or shards
    _check_complete(folder, shards)
    return shards


def _folder(path: Path, split: str, suffix: str) -> Path | None:
    folders = (path / split, path / "data", path)
    return next((f for f in folders if f.is_dir() and any(f.glob(f"*{suffix}"))), None)


def _splits_of(shard: Path) -> set[str]:
    words = set(re.split(r"[^a-z]+", shard.stem.lower()))
    return {split for split, known in WORDS.items() if words & known}


def _check_complete(folder: Path, shards: list[Path]) -> None:
    """See that no number is missing where names say how many shards there are."""
    series: dict[tuple[str, str], set[str]] = {}  # older downloads have a hash after the total
    for match in filter(None, (OF.fullmatch(shard.name) for shard in shards)):
        series.setdefault((match["before"], match["total"]), set()).add(match["number"])
    for (before, total), numbers in series.items():
        if len(numbers) < int(total):
            width = len(min(numbers))
            first = next(n for n in (f"{i:0{width}}" for i in count()) if n not in numbers)
            raise UserError(
                f"{folder}: {int(total) - len(numbers):,} of {int(total):,} shards are missing, the "
                f"first is {before}{first}-of-{total}; the download is incomplete"
            )
