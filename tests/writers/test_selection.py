"""Draws that follow from a seed and a name."""

from pathlib import Path

import numpy as np
import pytest

from ffcv_r50.errors import UserError
from writers import selection
from writers.sources.image_folder import ImageFolder

PATHS = [f"n{i % 100:08}/n{i % 100:08}_{i}.JPEG" for i in range(20_000)]


def test_draws_are_uniform_and_independent_of_each_other() -> None:
    draws = {
        (seed, purpose): np.array([selection.draw(seed, purpose, path) for path in PATHS])
        for seed, purpose in ((0, "compress"), (1, "compress"), (0, "subset"))
    }
    for values in draws.values():
        assert values.min() >= 0
        assert values.max() < 1
        # Each of 20 bins is binomial; 5 sigma leaves one failure in 30,000 choices of a hash.
        bins = np.histogram(values, 20, (0, 1))[0]
        assert np.abs(bins - 1000).max() < 5 * np.sqrt(1000 * 0.95)
    base, *others = draws.values()
    for other in others:
        assert abs(np.corrcoef(base, other)[0, 1]) < 5 / np.sqrt(len(PATHS))


def test_draws_never_change() -> None:
    # A dataset written next year must hold the same images raw.
    assert selection.draw(0, "compress", "n01440764/n01440764_10026.JPEG") == 0.5478791910485181


def source(names: list[str]) -> ImageFolder:
    return ImageFolder(Path("root"), ["a"], names, [0] * len(names), 0)


def chosen(names: list[str], count: int, seed: int) -> list[str]:
    indices = selection.subset(source(names), count, seed)
    assert list(indices) == sorted(set(indices))
    return [names[i] for i in indices]


def test_subsets_are_reproducible_nested_and_over_all_classes() -> None:
    small = chosen(PATHS, 500, seed=3)
    large = chosen(PATHS, 1000, seed=3)
    assert len(small) == 500
    assert set(small) < set(large)
    assert len({path.split("/")[0] for path in large}) == 100
    assert chosen(PATHS, 500, seed=4) != small
    # Images that were not chosen have no influence.
    fewer = [path for path in PATHS if path in set(large)]
    assert chosen(fewer, 500, seed=3) == small
    assert chosen(PATHS, len(PATHS), seed=3) == PATHS


@pytest.mark.parametrize("count", [0, 4])
def test_a_subset_must_be_there(count: int) -> None:
    with pytest.raises(UserError, match=f"cfg.subset: root has 3 images, cannot take {count}$"):
        selection.subset(source(PATHS[:3]), count, seed=0)
