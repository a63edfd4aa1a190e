"""The resize: Pillow's and torchvision's anti-aliased bilinear filter, within 1 of 255."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from ffcv_r50.data import resize as module
from ffcv_r50.data.decode import Scratch, Stored
from ffcv_r50.data.resize import Bitmap, Box, max_taps, resize, triangle_weights

Pixels = npt.NDArray[np.uint8]
Window = tuple[float, float, float, float]


def _resize(source: Pixels, window: Window, size: tuple[int, int], flip: bool = False) -> Pixels:
    """By the compiled function, surrounded by bytes that must stay as they are."""
    longest_side = max(source.shape[:2])
    nothing = np.empty(0, np.uint8)
    empty: Any = np.empty(0, np.int64)
    stored = Stored(
        -1,
        nothing,
        empty,
        empty,
        empty,
        empty,
        0,
        0,
        longest_side,
    )
    scratch = Scratch.allocate(stored, max(size))
    guarded = np.full(size[0] * size[1] * 3 + 32, 77, np.uint8)
    out = guarded[16:-16].reshape(*size, 3)
    resize(Bitmap(source.reshape(-1), *source.shape), Box(*window), flip, out, scratch)
    assert (guarded[:16] == 77).all()
    assert (guarded[-16:] == 77).all()
    return out


def _noise(rows: int, columns: int, channels: int) -> Pixels:
    """Black and white pixels at random: no filter has it harder."""
    bits = np.random.default_rng(rows * columns).integers(0, 2, (rows, columns, channels))
    return (bits * 255).astype(np.uint8)


def _worst(a: Any, b: Any) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


SHAPES = [
    ((300, 300), (160, 160)),
    ((375, 500), (128, 128)),
    ((97, 101), (224, 224)),  # enlarged
    ((500, 20), (64, 64)),  # shrunk one way, enlarged the other
    ((1, 1), (32, 32)),
    ((2, 3), (1, 1)),
    ((640, 640), (64, 64)),  # more taps than are unrolled
    ((13, 2000), (17, 19)),
    *(((40 * k - 3, 40 * k - 5), (40, 40)) for k in (1, 2, 3, 4)),  # each number of taps
]


@pytest.mark.slow
@pytest.mark.parametrize(("source", "size"), SHAPES)
@pytest.mark.parametrize("channels", [3, 4])
def test_whole_images_beside_pillow(
    source: tuple[int, int], size: tuple[int, int], channels: int
) -> None:
    pixels = _noise(*source, channels)
    image = Image.fromarray(pixels[..., :3].copy())
    expected = image.resize(size[::-1], Image.Resampling.BILINEAR)
    window = (0.0, 0.0, float(source[0]), float(source[1]))
    assert _worst(_resize(pixels, window, size), expected) <= 1
    assert _worst(_resize(pixels, window, size, flip=True)[:, ::-1], expected) <= 1


@pytest.mark.slow
def test_windows_beside_torchvision() -> None:
    """A window sees nothing of the image around it, as with crop, then resize."""
    rng = np.random.default_rng(0)
    pixels = _noise(120, 150, 4)
    image = torch.from_numpy(pixels[..., :3].copy()).permute(2, 0, 1)
    for _ in range(100):
        height, width = int(rng.integers(1, 121)), int(rng.integers(1, 151))
        top, left = int(rng.integers(0, 121 - height)), int(rng.integers(0, 151 - width))
        expected = functional.resized_crop(
            image, top, left, height, width, [40, 56], antialias=True
        )
        window = (float(top), float(left), float(height), float(width))
        assert _worst(_resize(pixels, window, (40, 56)), expected.permute(1, 2, 0)) <= 1


def test_fractional_windows_beside_pillow() -> None:
    """What a scaled decode asks for. Pillow's box takes fractions; its pixels around are seen."""
    pixels = _noise(60, 60, 4)
    image = Image.fromarray(pixels[..., :3].copy())
    top, left, height, width = 5.5, 7.25, 41.5, 37.75
    expected = image.resize(
        (20, 20), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
    )
    ours = _resize(pixels, (top, left, height, width), (20, 20))
    assert _worst(ours[1:-1, 1:-1], np.asarray(expected)[1:-1, 1:-1]) <= 1


def test_weights_sum_to_one_and_stay_in_the_window() -> None:
    for start, span, size, count in [
        (0.0, 500.0, 500, 160),
        (3.5, 7.25, 20, 64),
        (9.0, 1.0, 10, 8),
    ]:
        stride = max_taps(span, count)
        firsts, taps = np.zeros(count, np.int64), np.zeros(count, np.int64)
        weights = np.full(count * stride, np.nan, np.float32)
        most = triangle_weights(start, span, size, firsts, taps, weights)
        assert most == taps.max() <= stride
        assert (firsts >= int(start)).all()
        assert (firsts + taps <= min(size, np.ceil(start + span))).all()
        rows = weights.reshape(count, stride)
        np.testing.assert_allclose(rows.sum(1), 1, atol=1e-6)
        assert not rows[np.arange(stride) >= taps[:, None]].any()


def test_each_number_of_taps_has_a_name_of_its_own() -> None:
    """numba took one for another where a process had one from the disk and compiled the other."""
    unrolled = [getattr(module, f"_columns_{taps}") for taps in (2, 3, 4, 5, 6, 7, 8, "any")]
    assert len({function.py_func.__qualname__ for function in unrolled}) == len(unrolled)
