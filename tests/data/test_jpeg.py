"""Tiles, scaled decoding, and what damaged bytes do."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ffcv_r50.data import jpeg
from ffcv_r50.data.crops import Window
from ffcv_r50.data.decode import Scratch, Stored, decode_jpeg, scaling
from ffcv_r50.errors import UserError
from tests.data.conftest import encode, make_image

Pixels = npt.NDArray[np.uint8]
Make = Callable[..., Any]


@pytest.fixture
def decompressor() -> Iterator[jpeg.Decompressor]:
    decompressor = jpeg.Decompressor()
    yield decompressor
    decompressor.close()


class Decoded:
    """What :func:`decode_jpeg` made of a window."""

    def __init__(
        self,
        handle: int,
        data: bytes,
        size: tuple[int, int],
        window: tuple[int, ...],
        scale: int = 1,
    ) -> None:
        array = np.frombuffer(data, np.uint8)
        empty: Any = np.empty(0, np.int64)
        stored = Stored(
            -1,
            array,
            empty,
            empty,
            empty,
            empty,
            len(data),
            size[0] * size[1],
            max(size),
        )
        scratch = Scratch.allocate(stored, 8)
        decode: Any = decode_jpeg
        self.status, part = decode(handle, array, size, Window(*window), scale, scratch)
        self.top, self.left, self.rows, self.columns = part
        self.pixels = scratch.pixels[: 4 * self.rows * self.columns].reshape(
            self.rows, self.columns, 4
        )[..., :3]

    def cropped(self, window: tuple[int, ...]) -> Pixels:
        top, left, height, width = window
        top, left = top - self.top, left - self.left
        assert top >= 0
        assert left >= 0
        return self.pixels[top : top + height, left : left + width]


def _by_pillow(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _windows(height: int, width: int, count: int, seed: int) -> Iterator[tuple[int, ...]]:
    """The whole image, its corners, and windows at random, down to single pixels."""
    yield 0, 0, height, width
    yield 0, 0, 1, 1
    yield height - 1, width - 1, 1, 1
    rng = np.random.default_rng(seed)
    for _ in range(count):
        h, w = (1 + int(side * rng.random() ** 2) for side in (height, width))
        yield int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w


MCU = {"4:2:0": 16, "4:2:2": 16, "4:4:4": 8, "gray": 8}
SIZES = [
    (1, 1), (8, 8), (16, 16), (17, 16), (1, 50), (97, 101), (64, 160), (149, 331), (375, 500),
]  # fmt: skip


@pytest.mark.parametrize("subsampling", list(MCU))
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_tiles_give_the_pixels_of_a_full_decode(
    height: int, width: int, subsampling: str, make_image: Make, encode: Make,
    decompressor: jpeg.Decompressor,
) -> None:  # fmt: skip
    """Bit for bit, against Pillow; about 5,600 windows in all, at each interval that divides the row."""
    row = -(-width // MCU[subsampling])
    intervals = [n for n in range(1, row + 1) if row % n == 0]
    for interval in intervals:
        gray = subsampling == "gray"
        pixels = make_image(height, width, seed=interval, channels=1 if gray else 3)
        data = encode(pixels, interval=interval, **({} if gray else {"subsampling": subsampling}))
        status, header = jpeg.read_header(np.frombuffer(data, np.uint8))
        assert (status, header.height, header.width) == (jpeg.GOOD, height, width)
        assert header.interval == interval
        whole = _by_pillow(data)
        for window in _windows(height, width, 160 // len(intervals), interval):
            decoded = Decoded(decompressor.handle, data, (height, width), window)
            assert decoded.status == jpeg.GOOD
            top, left, h, w = window
            assert np.array_equal(decoded.cropped(window), whole[top : top + h, left : left + w])
            if interval == 1:  # no more rows and columns than it takes
                assert decoded.rows <= h + 2 * (jpeg.MARGIN + MCU[subsampling])
                assert decoded.columns <= w + 2 * jpeg.MARGIN + 3 * MCU[subsampling]


def test_a_panorama(make_image: Make, encode: Make, decompressor: jpeg.Decompressor) -> None:
    height, width = 40, 65_500
    data = encode(make_image(height, width), interval=2)
    whole = _by_pillow(data)
    for window in [(3, 60_001, 30, 5_432), (0, 0, 40, 100), (39, 65_499, 1, 1)]:
        decoded = Decoded(decompressor.handle, data, (height, width), window)
        top, left, h, w = window
        assert decoded.columns <= w + 2 * (32 + jpeg.MARGIN)
        assert np.array_equal(decoded.cropped(window), whole[top : top + h, left : left + w])


@pytest.mark.parametrize(
    "settings",
    [{}, {"optimize": True}, {"interval": 3}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"}],
)
def test_jpegs_without_tiles_are_decoded_to_the_end_of_the_window(
    settings: dict[str, Any], make_image: Make, encode: Make, decompressor: jpeg.Decompressor
) -> None:
    """Bit for bit, too. An interval that does not divide the row makes no tiles."""
    data = encode(make_image(150, 100), **settings)
    whole = _by_pillow(data)
    for window in _windows(150, 100, 60, 0):
        decoded = Decoded(decompressor.handle, data, (150, 100), window)
        top, left, h, w = window
        assert decoded.status == jpeg.GOOD
        assert decoded.columns == 100
        assert decoded.rows < top + h + jpeg.MARGIN + 16
        assert np.array_equal(decoded.cropped(window), whole[top : top + h, left : left + w])


def test_damage_within_the_window_counts(
    make_image: Make, encode: Make, decompressor: jpeg.Decompressor
) -> None:
    data = encode(make_image(160, 160))
    damaged = data[:2000] + b"\xff\xd9" + data[2002:]
    assert len(data) > 4000
    for top, status in ((0, jpeg.GOOD), (100, jpeg.LIBRARY), (140, jpeg.LIBRARY)):
        window = (top, 0, 12, 160)
        assert Decoded(decompressor.handle, damaged, (160, 160), window).status == status
        if status == jpeg.LIBRARY:
            assert "remature" in decompressor.error()


def test_progressive_jpegs_are_decoded_whole(
    make_image: Make, encode: Make, decompressor: jpeg.Decompressor
) -> None:
    data = encode(make_image(75, 100), progressive=True, interval=1)
    decoded = Decoded(decompressor.handle, data, (75, 100), (10, 10, 20, 20))
    assert (decoded.status, decoded.rows, decoded.columns) == (jpeg.GOOD, 75, 100)
    assert np.array_equal(decoded.pixels, _by_pillow(data))


@pytest.mark.parametrize("interval", [0, 1])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_scaled_decoding_is_pillows_draft(
    scale: int, interval: int, make_image: Make, encode: Make, decompressor: jpeg.Decompressor
) -> None:
    height, width = 149, 331
    data = encode(make_image(height, width), interval=interval)
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (width // scale, height // scale))
    whole = np.asarray(image)
    assert whole.shape[0] == -(-height // scale)
    for top, left, h, w in _windows(height, width, 20, scale):
        decoded = Decoded(decompressor.handle, data, (height, width), (top, left, h, w), scale)
        assert decoded.status == jpeg.GOOD
        window = (top // scale, left // scale, -(-h // scale), -(-w // scale))
        there = whole[window[0] : window[0] + window[2], window[1] : window[1] + window[3]]
        assert np.array_equal(decoded.cropped(window), there)


def test_scale_never_enlarges_again() -> None:
    assert scaling(320, 319, 160) == 1
    assert scaling(320, 320, 160) == 2
    assert scaling(5000, 640, 160) == 4
    assert scaling(5000, 5000, 160) == 8


def test_garbage_after_the_end_is_no_error(
    make_image: Make, encode: Make, decompressor: jpeg.Decompressor
) -> None:
    for interval in (0, 1):
        data = encode(make_image(40, 40), interval=interval) + b"garbage" * 9
        assert Decoded(decompressor.handle, data, (40, 40), (0, 0, 40, 40)).status == jpeg.GOOD


def test_damage_is_noticed_and_named(
    make_image: Make, encode: Make, decompressor: jpeg.Decompressor
) -> None:
    plain, tiled = encode(make_image(64, 96)), encode(make_image(64, 96), interval=2)
    restart = tiled.index(b"\xff\xd3")
    for data, size, status in [
        (b"", (64, 96), jpeg.NOT_JPEG),
        (b"\x89PNG\r\n\x1a\n", (64, 96), jpeg.NOT_JPEG),
        (plain[:100], (64, 96), jpeg.TRUNCATED),
        (plain, (64, 97), jpeg.WRONG_SIZE),
        (tiled[:-40], (64, 96), jpeg.TRUNCATED),
        (tiled[:restart] + b"\xff\xd4" + tiled[restart + 2 :], (64, 96), jpeg.RESTARTS),
        (tiled[:restart] + tiled[restart + 2 :], (64, 96), jpeg.RESTARTS),
        (plain[:-200], (64, 96), jpeg.LIBRARY),
        (plain[:700] + b"\0" * 60 + plain[760:], (64, 96), jpeg.LIBRARY),
    ]:
        assert Decoded(decompressor.handle, data, size, (0, 0, *size)).status == status
        if status == jpeg.LIBRARY:
            assert "orrupt" in decompressor.error() or "remature" in decompressor.error()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_damaged_bytes_never_crash(seed: int) -> None:
    """12,000 mutations in all, each in memory between pages that must not be touched."""
    repository = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("fuzz_jpeg.py"), "6000", str(seed)],
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-2000:]}"
    counts = {int(s): int(n) for s, n in (pair.split(":") for pair in done.stdout.split())}
    assert sum(counts.values()) == 6000
    for status in (
        jpeg.GOOD,
        *(s for s in jpeg.REASONS if s not in (jpeg.TOO_LARGE, jpeg.TOO_MANY_SCANS)),
        jpeg.LIBRARY,
    ):
        assert counts[status] > 0


def test_without_the_library_the_error_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", missing)
    with pytest.raises(UserError, match=r"libturbojpeg0.*conda.*libjpeg-turbo"):
        jpeg.library.__wrapped__()


def test_a_progressive_jpeg_of_hundreds_of_large_scans_is_refused_at_once(
    decompressor: jpeg.Decompressor,
) -> None:
    """A few thousand bytes that would take minutes: every scan goes over all pixels."""
    side = 8000
    data = bytearray(encode(make_image(16, 16), progressive=True))
    frame = data.index(b"\xff\xc2")
    data[frame + 5 : frame + 9] = bytes([side >> 8, side & 255] * 2)
    scan = data.rindex(b"\xff\xda")
    bomb = bytes(data[:-2]) + bytes(data[scan:-2]) * 500 + b"\xff\xd9"
    assert len(bomb) < 30_000
    window = (0, 0, side, side)
    refused = Decoded(decompressor.handle, bomb, (side, side), window)
    assert refused.status == jpeg.TOO_MANY_SCANS
    # As many of a small image are no bomb.
    small = encode(make_image(16, 16), progressive=True)
    more = small[:-2] + small[small.rindex(b"\xff\xda") : -2] * 500 + b"\xff\xd9"
    assert Decoded(decompressor.handle, more, (16, 16), (0, 0, 16, 16)).status != (
        jpeg.TOO_MANY_SCANS
    )
