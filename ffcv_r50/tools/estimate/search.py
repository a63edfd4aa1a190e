"""The largest of some sizes that fits, where only trying tells."""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def search(
    sizes: Sequence[int], first: int, attempt: Callable[[int], T | None]
) -> dict[int, T | None]:
    """Try sizes until the largest one that fits is known: each at least twice or at most half the last,
    then those in between by bisection.

    Args:
        sizes: increasing. Where one fits, all smaller ones are taken to fit.
        first: the one to begin with.
        attempt: what comes of a size; None where it does not fit.

    Returns:
        What came of each size that was tried, in that order.
    """
    tried: dict[int, T | None] = {}
    fits, fails = -1, len(sizes)  # all up to the one do, none from the other on
    at = sizes.index(first)
    while fails - fits > 1:
        tried[sizes[at]] = found = attempt(sizes[at])
        fits, fails = (fits, at) if found is None else (at, fails)
        if fails == len(sizes):
            larger = [i for i in range(fits + 1, fails) if sizes[i] >= 2 * sizes[fits]]
            at = min(larger, default=fails - 1)
        elif fits == -1:
            smaller = [i for i in range(fails) if 2 * sizes[i] <= sizes[fails]]
            at = max(smaller, default=0)
        else:
            at = (fits + fails) // 2
    return tried
