"""Parts of a dataset, which are written apart and joined by :mod:`writers.merge`."""

import re
from collections.abc import Sequence

from ffcv_r50.errors import UserError


def shard_numbers(shard: str) -> tuple[int, int] | None:
    """``3/16`` -> 3, 16; None for anything that names no part."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})", shard)
    number, count = (int(found[1]), int(found[2])) if found else (1, 0)
    return (number, count) if number <= count else None


def part(indices: Sequence[int], number: int, count: int) -> Sequence[int]:
    """The ``number``-th (from 1) of ``count`` parts, one behind the other, as equal as they can be.

    Raises:
        UserError: there are more parts than images.
    """
    total = len(indices)
    if count > total:
        raise UserError(f"cfg.shard: {total:,} images cannot be shared among {count:,} parts")
    return indices[total * (number - 1) // count : total * number // count]
