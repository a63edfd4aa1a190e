"""What shuffling a file is for."""

import sys

import numpy as np
import pytest

from benchmarks import classes_per_step as program
from ffcv_r50.data.order import PageOrder, random_order


def test_it_is_what_a_loop_counts() -> None:
    labels = np.random.default_rng(0).integers(0, 30, 1000)
    order = random_order(1000, 3, 0)
    counted = [len(set(labels[order[i : i + 64]].tolist())) for i in range(0, 960, 64)]
    assert program.classes_per_step(labels, order, 64) == pytest.approx(np.mean(counted))


def test_page_wise_order_of_a_shuffled_file_mixes_classes() -> None:
    """2048 pages of 76 samples in 1000 classes; a step of 1024 from anywhere sees 641 of them."""
    samples = np.arange(2048 * 76)
    order = PageOrder(samples * 64, 76 * 64).order(0, 0, 1024)
    by_class = samples * 1000 // len(samples)
    shuffled = by_class[random_order(len(samples), 1, 0)]
    expected = 1000 * (1 - (1 - 1 / 1000) ** 1024)
    assert program.classes_per_step(by_class, order, 1024) < 450
    assert program.classes_per_step(shuffled, order, 1024) == pytest.approx(expected, abs=5)


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--images=70000", "--classes=500"])
    program.main()
    rows = [line.split()[-2:] for line in capsys.readouterr().out.splitlines()[1:]]
    assert float(rows[0][1]) < float(rows[0][0])
    assert float(rows[1][1]) == pytest.approx(float(rows[1][0]), abs=1)
