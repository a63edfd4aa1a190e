"""The largest size that fits, against trying all of them."""

import itertools

from ffcv_r50.tools.estimate.search import search


def divisors(n: int) -> list[int]:
    return [i for i in range(1, n + 1) if n % i == 0]


def test_it_finds_what_trying_all_sizes_finds() -> None:
    for batch in (1, 7, 60, 1000, 4096):
        sizes = divisors(batch)
        for first, limit in itertools.product(sizes, [0, *sizes, 5000]):
            tried = search(sizes, first, lambda size: size if size <= limit else None)  # noqa: B023
            fitting = [size for size, found in tried.items() if found]
            assert max(fitting, default=0) == max((s for s in sizes if s <= limit), default=0)
            assert all(found in (None, size) for size, found in tried.items())


def test_it_begins_with_the_first_and_tries_few_and_nothing_twice() -> None:
    for batch in (1000, 4096, 5040):
        sizes = divisors(batch)
        for first, limit in itertools.product(sizes, [0, *sizes]):
            asked: list[int] = []

            def attempt(size: int) -> bool | None:
                asked.append(size)  # noqa: B023
                return True if size <= limit else None  # noqa: B023

            assert [*search(sizes, first, attempt)] == asked
            assert asked[0] == first
            assert len(asked) == len(set(asked)) <= 2 * len(sizes).bit_length() + 8
            # An attempt far above what fits would take long, or more of the host than it has.
            near = [s for s in sizes if s >= 2 * limit] or sizes[-1:]
            assert max(asked) <= max(first, near[0])
