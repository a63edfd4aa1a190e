"""Windows and flips: torchvision's distribution, from numbers of our own."""

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from ffcv_r50.data.crops import center_crop, random_crop, random_flip

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
SEED = np.uint64(11)


def _ours(
    height: int, width: int, count: int, epoch: int = 0
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.array(
        [random_crop(SEED, epoch, i, height, width, SCALE, RATIO) for i in range(count)]
    )


def _distance(
    a: np.ndarray[tuple[int], np.dtype[np.float64]], b: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> float:
    """Kolmogorov and Smirnov's: the largest gap between two empirical distributions."""
    points = np.unique(np.concatenate([a, b]))
    below_a = np.searchsorted(np.sort(a), points, "right") / len(a)
    below_b = np.searchsorted(np.sort(b), points, "right") / len(b)
    return float(np.abs(below_a - below_b).max())


@pytest.mark.parametrize(
    ("height", "width"),
    [(375, 500), (500, 333), (64, 64), (40, 500), (700, 30), (2, 3), (1, 1)],
)
def test_windows_are_distributed_as_torchvisions(height: int, width: int) -> None:
    """40 x 500 and 700 x 30 fail ten tries now and then, or always, and fall back to the centre."""
    count = 6000
    ours = _ours(height, width, count)
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(count)]
    )
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    critical = 2.23 * np.sqrt(2 / count)  # p = 1e-4
    quantities = {
        "top": lambda w: w[:, 0],
        "left": lambda w: w[:, 1],
        "height": lambda w: w[:, 2],
        "width": lambda w: w[:, 3],
        "area": lambda w: w[:, 2] * w[:, 3],
        "ratio": lambda w: w[:, 3] / w[:, 2],
        "room used": lambda w: w[:, 0] / (height + 1 - w[:, 2]) + w[:, 1] / (width + 1 - w[:, 3]),
    }
    for name, of in quantities.items():
        assert _distance(of(ours), of(theirs)) < critical, name


def test_a_window_is_a_function_of_seed_epoch_and_sample() -> None:
    first = _ours(375, 500, 200)
    assert np.array_equal(first, _ours(375, 500, 200))
    assert np.mean((first == _ours(375, 500, 200, epoch=1)).all(1)) < 0.05
    other = [random_crop(np.uint64(12), 0, i, 375, 500, SCALE, RATIO) for i in range(200)]
    assert np.mean((first == other).all(1)) < 0.05
    far = [random_crop(SEED, 0, i + 2**32, 375, 500, SCALE, RATIO) for i in range(200)]
    assert np.mean((first == far).all(1)) < 0.05


def test_windows_never_change() -> None:
    """Runs that are resumed by a later version must see the same crops."""
    assert _ours(375, 500, 3).tolist() == [
        [5, 10, 361, 470],
        [12, 82, 273, 305],
        [221, 164, 149, 168],
    ]


def test_flips_are_a_coin_independent_of_the_window() -> None:
    count = 20_000
    flips = np.array([random_flip(SEED, 0, i, 0.5) for i in range(count)])
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / np.sqrt(count)
    left = _ours(375, 500, count)[:, 1]
    assert abs(np.corrcoef(flips, left)[0, 1]) < 4 / np.sqrt(count)
    assert not any(random_flip(SEED, 0, i, 0.0) for i in range(500))
    assert all(random_flip(SEED, 0, i, 1.0) for i in range(500))


def test_center_crop_is_ffcvs() -> None:
    assert center_crop(375, 500, 0.875) == (23, 86, 328, 328)
    assert center_crop(500, 333, 1.0) == (83, 0, 333, 333)
    assert center_crop(1, 1, 0.5) == (0, 0, 1, 1)
    assert center_crop(3, 1000, 224 / 256) == (0, 499, 2, 2)


@pytest.mark.parametrize("ratio", [224 / 256, 1.0, 0.1])
def test_center_crop_beside_stock_ffcv(ratio: float) -> None:
    from ffcv.fields.rgb_image import get_center_crop

    for height, width in [(375, 500), (500, 333), (17, 17), (11, 99)]:
        assert center_crop(height, width, ratio) == get_center_crop(height, width, None, ratio)


def test_a_crop_is_never_empty() -> None:
    for height, width, ratio in [(10, 1, (4.0, 8.0)), (1, 10, (0.1, 0.2)), (1, 1, (0.75, 1.33))]:
        top, left, h, w = random_crop(SEED, 0, 0, height, width, (0.08, 1.0), ratio)
        assert 1 <= h <= height - top
        assert 1 <= w <= width - left
