"""Which images are written, in which order: choices that follow from a seed and the images' names."""

import hashlib
import heapq
import os
from collections.abc import Sequence

import numpy as np

from ffcv_r50.errors import UserError
from writers.sources import Source


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
