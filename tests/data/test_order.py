"""The order of samples: random numbers, permutations, and pages."""

import time
from collections import OrderedDict

import numpy as np
import pytest

from ffcv_r50.data import order
from ffcv_r50.data.order import PageOrder, random_order, repeated
from ffcv_r50.data.philox import below, philox4x32, uniform

IMAGENET = 1_281_167


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0_A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_is_the_published_function(
    counter: tuple[int, int, int, int], key: int, expected: str
) -> None:
    """Known answers of Random123 (kat_vectors, philox4x32 with 10 rounds)."""
    numbers = philox4x32(*counter, np.uint64(key))
    assert " ".join(f"{int(n):08x}" for n in numbers) == expected


def test_numbers_stay_in_their_range() -> None:
    top = np.uint64(2**32 - 1)
    assert below(top, 7) == 6
    assert below(np.uint64(0), 7) == 0
    assert uniform(np.uint64(0), 0.25, 0.5) == 0.25
    assert 0.4999 < uniform(top, 0.25, 0.5) < 0.5


def test_an_epoch_is_a_permutation_of_its_seed_and_number() -> None:
    first = random_order(1000, 5, 0)
    assert sorted(first) == list(range(1000))
    assert np.array_equal(first, random_order(1000, 5, 0))
    for other in (
        random_order(1000, 6, 0),
        random_order(1000, 5, 1),
        random_order(1000, 5 + 2**32, 0),
    ):
        assert np.mean(first == other) < 0.02


def test_the_permutation_never_changes() -> None:
    """Runs that are resumed by a later version must see the same epochs."""
    assert random_order(10, 1, 2).tolist() == [4, 1, 7, 0, 9, 8, 5, 6, 3, 2]


def test_every_sample_is_as_likely_at_every_place() -> None:
    n, trials = 8, 8000
    counts = np.zeros((n, n))
    for epoch in range(trials):
        counts[np.arange(n), random_order(n, 3, epoch)] += 1
    chi_square = ((counts - trials / n) ** 2 / (trials / n)).sum()
    assert 15 < chi_square < 100  # 49 degrees of freedom: mean 49, standard deviation 10


def test_the_order_of_imagenet_takes_less_than_a_fifth_of_a_second() -> None:
    """All of what a rank does for an epoch: 1,024 ranks each take their batches of it."""

    def one(rank: int) -> float:
        start = time.thread_time()
        samples = random_order(IMAGENET, 1, rank)
        mine = samples[: 312 * 4096].reshape(312, 1024, 4)[:, rank]
        assert np.ascontiguousarray(mine).shape == (312, 4)
        return time.thread_time() - start

    assert min(one(rank) for rank in (0, 511, 1023)) < 0.2


# --- pages

PAGE = 1 << 20


def _offsets(num_samples: int, per_page: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    places = np.arange(num_samples)
    return 3 * PAGE + places // per_page * PAGE + places % per_page * (PAGE // per_page)


def test_page_order_takes_each_sample_at_most_once() -> None:
    pages = PageOrder(np.random.default_rng(0).permutation(_offsets(1000, 7)), PAGE)
    taken = pages.order(1, 0, 96)
    assert len(taken) == 960
    assert len(set(taken.tolist())) == 960
    assert taken.min() >= 0
    assert taken.max() < 1000
    assert not np.array_equal(taken, pages.order(1, 1, 96))
    assert not np.array_equal(taken, pages.order(2, 0, 96))
    assert np.array_equal(taken, pages.order(1, 0, 96))
    one_page = PageOrder(_offsets(64, 64), PAGE)
    assert not np.array_equal(one_page.order(1, 0, 32), one_page.order(1, 1, 32))


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_each_page_is_read_about_once_at_any_world_size(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks with memory for twice their share of the pools, as an LRU cache."""
    monkeypatch.setattr(order, "POOL_PAGES", 64)
    monkeypatch.setattr(order, "MAX_LANES", 8)
    per_page, num_samples, batch = 50, 50_000, 512
    offsets = _offsets(num_samples, per_page)
    samples = PageOrder(offsets, PAGE).order(3, 0, batch)
    by_rank = samples.reshape(-1, world_size, batch // world_size).swapaxes(0, 1)
    reads = 0
    for mine in by_rank.reshape(world_size, -1):
        memory: OrderedDict[int, None] = OrderedDict()
        for page in (offsets[mine] // PAGE).tolist():
            if page in memory:
                memory.move_to_end(page)
                continue
            reads += 1
            memory[page] = None
            if len(memory) > 128 // world_size:
                memory.popitem(last=False)
    assert reads <= 1.15 * num_samples / per_page
    random = offsets[random_order(num_samples, 0, 0)] // PAGE
    assert np.count_nonzero(np.diff(random)) > 40 * num_samples / per_page  # what it saves


def test_how_far_page_order_is_from_uniform_mixing() -> None:
    """Total variation between a batch's classes and the dataset's, on ImageNet's proportions.

    Measured here (batches of 1,024, 1,000 classes, 145 samples a page of 8 MiB): 0.37 for a random
    order, since so few samples cannot match 1,000 classes; 0.37 for page order where the file was
    written shuffled; 0.63 where it is sorted by class, with the classes of 512 pages at a time.
    """
    num_samples, classes, batch = IMAGENET, 1000, 1024
    offsets = _offsets(num_samples, 145)
    by_class = np.arange(num_samples) * classes // num_samples

    def distance(
        samples: np.ndarray[tuple[int], np.dtype[np.int64]],
        labels: np.ndarray[tuple[int], np.dtype[np.int64]],
    ) -> float:
        batches = labels[samples[: len(samples) // batch * batch]].reshape(-1, batch)
        shares = np.stack([np.bincount(b, minlength=classes) / batch for b in batches[:100]])
        return float(np.abs(shares - 1 / classes).sum(1).mean() / 2)

    shuffled = by_class[np.random.default_rng(0).permutation(num_samples)]
    pages = PageOrder(offsets, PAGE).order(1, 0, batch)
    uniform = distance(random_order(num_samples, 1, 0), by_class)
    assert distance(pages, shuffled) == pytest.approx(uniform, abs=0.01)
    assert uniform == pytest.approx(0.367, abs=0.01)
    assert distance(pages, by_class) == pytest.approx(0.632, abs=0.03)


# --- repeated augmentation


@pytest.mark.parametrize(("repeats", "batch"), [(1, 32), (4, 32), (3, 32), (32, 32), (5, 12)])
def test_each_sample_of_a_step_is_there_so_many_times(repeats: int, batch: int) -> None:
    steps = 1000 // batch
    views = repeated(random_order(1000, 3, 0), repeats, batch, steps).reshape(steps, batch)
    shown: set[int] = set()
    for step in views:
        samples, repetitions = step & 0xFFFFFFFF, step >> 32
        assert len(set(step.tolist())) == batch  # no view twice
        values, counts = np.unique(samples, return_counts=True)
        assert counts.max() - counts.min() <= (batch % repeats > 0)
        assert len(values) == -(-batch // repeats)
        for value in values:
            # Numbered from 0, and as far apart as the batch allows.
            assert sorted(repetitions[samples == value]) == list(range((samples == value).sum()))
            places = np.flatnonzero(samples == value)
            assert (np.diff(places) == -(-batch // repeats)).all()
        assert not shown & set(values.tolist())
        shown |= set(values.tolist())
    assert len(shown) == steps * -(-batch // repeats)
