"""Planting wrong labels, and how many of them a list finds."""

from pathlib import Path

import numpy as np

from benchmarks import label_errors
from ffcv_r50.data.beton import Beton
from tests.conftest import Dataset


def test_what_is_planted_is_wrong_and_nothing_else(dataset: Dataset, tmp_path: Path) -> None:
    wrong = label_errors.plant(dataset.train, tmp_path / "x.beton", 0.1, seed=3)
    before, after = Beton(dataset.train), Beton(tmp_path / "x.beton")
    assert len(wrong) == 7
    assert np.flatnonzero(before.labels != after.labels).tolist() == wrong.tolist()
    assert all(before.read(i) == after.read(i) for i in range(before.num_samples))


def test_precision_and_recall_are_counted() -> None:
    loss = np.array([0.1, 5.0, np.nan, 4.0, 0.2, 3.0, 1.0, 0.0])
    wrong = np.array([1, 5])
    half, whole, twice = label_errors.rank(loss, wrong)
    assert half == (1, 1.0, 0.5)  # sample 1
    assert whole == (2, 0.5, 0.5)  # 1 and 3
    assert twice == (4, 0.5, 1.0)  # 1, 3, 5, 6
