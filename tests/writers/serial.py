"""Writing without worker processes, which take a second to start."""

from collections.abc import Callable, Generator, Iterable
from typing import Any


def in_this_process(
    function: Callable[..., Any], chunks: Iterable[tuple[Any, ...]], num_workers: int
) -> Generator[Any, None, None]:
    """Stands in for :func:`writers.pool.ordered_map`."""
    for chunk in chunks:
        yield function(*chunk)
