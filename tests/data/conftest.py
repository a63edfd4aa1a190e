"""Files and images for the tests of the data engine, written byte by byte."""

import gc
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ffcv_r50.data import beton
from ffcv_r50.data.loader import TrainLoader

Pixels = npt.NDArray[np.uint8]
MakeImage = Callable[..., Pixels]
Encode = Callable[..., bytes]
WriteBeton = Callable[..., beton.Beton]


@pytest.fixture(scope="session", name="make_image")
def _make_image() -> MakeImage:
    return make_image


@pytest.fixture(scope="session", name="encode")
def _encode() -> Encode:
    return encode


@pytest.fixture(scope="session", name="write_beton")
def _write_beton() -> WriteBeton:
    return write_beton


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    """What a test starts it ends."""
    before = set(threading.enumerate())
    yield
    gc.collect()
    assert set(threading.enumerate()) <= before


def train(dataset: beton.Beton, **changes: Any) -> TrainLoader:
    """A small loader; ``changes`` to its settings."""
    settings: dict[str, Any] = {"seed": 3, "batch_size": 16, "micro_batch_size": 4, **changes}
    return TrainLoader(dataset, **settings)


def make_image(height: int, width: int, seed: int = 0, channels: int = 3) -> Pixels:
    """Smooth shapes with some noise, so that a JPEG of it has coefficients of all kinds."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = [
        127
        + 90 * np.sin(x / rng.uniform(3, 40) + c) * np.cos(y / rng.uniform(3, 40))
        + rng.normal(0, 12, (height, width))
        for c in range(channels)
    ]
    return np.stack(planes, -1).clip(0, 255).astype(np.uint8)


def encode(
    pixels: Pixels, *, interval: int = 0, subsampling: str = "4:2:0", **more: object
) -> bytes:
    """A JPEG by Pillow; with an interval, a restart marker after so many MCUs."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    settings: dict[str, object] = {"quality": 90, **more}
    if image.mode == "RGB":
        settings["subsampling"] = subsampling
    if interval:
        settings["restart_marker_blocks"] = interval
    image.save(buffer, "JPEG", **settings)
    return buffer.getvalue()


def write_beton(
    path: Path,
    samples: Sequence[bytes | Pixels],
    sizes: Sequence[tuple[int, int]] | None = None,
    page_size: int = 1 << 21,
) -> beton.Beton:
    """A ``.beton`` file of JPEGs (bytes) and raw samples (pixels); labels are 0, 1, 2, 0, 1, ...

    ``sizes`` are the heights and widths that the metadata claims, by default the true ones.
    """
    metadata = np.zeros(len(samples), beton.metadata_dtype([beton.TYPE_IMAGE, beton.TYPE_INT]))
    fields = np.zeros(2, beton.FIELD)
    fields["type_id"] = [beton.TYPE_IMAGE, beton.TYPE_INT]
    table = np.zeros(len(samples), beton.ALLOCATION)
    at = -(-(beton.HEADER.itemsize + fields.nbytes + metadata.nbytes) // page_size) * page_size
    with open(path, "wb") as file:
        for i, sample in enumerate(samples):
            raw = isinstance(sample, np.ndarray)
            data = sample.tobytes() if isinstance(sample, np.ndarray) else sample
            if sizes is not None:
                height, width = sizes[i]
            elif isinstance(sample, np.ndarray):
                height, width = sample.shape[:2]
            else:
                width, height = Image.open(io.BytesIO(data)).size
            assert len(data) <= page_size
            if at // page_size != (at + len(data) - 1) // page_size:
                at = -(-at // page_size) * page_size
            file.seek(at)
            file.write(data)
            metadata["f0"][i] = (int(raw), width, height, at)
            table[i] = (i, at, len(data))
            at += len(data)
        metadata["f1"] = np.arange(len(samples)) % 3
        at = -(-at // page_size) * page_size
        file.seek(at)
        file.write(table.tobytes())
        file.seek(0)
        header = np.array([(2, 2, page_size, len(samples), at)], beton.HEADER)
        file.write(header.tobytes() + fields.tobytes() + metadata.tobytes())
    return beton.Beton(path)


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> beton.Beton:
    """50 samples of different sizes: tiled JPEGs, plain JPEGs, gray JPEGs and raw pixels."""
    rng = np.random.default_rng(7)
    samples: list[bytes | Pixels] = []
    for i in range(50):
        height, width = (int(side) for side in rng.integers(40, 140, 2))
        if i % 5 == 0:
            samples.append(make_image(height, width, i))
        elif i % 5 == 1:
            samples.append(encode(make_image(height, width, i)))
        elif i % 5 == 2:
            samples.append(encode(make_image(height, width, i, channels=1), interval=1))
        else:
            samples.append(encode(make_image(height, width, i), interval=1))
    return write_beton(tmp_path_factory.mktemp("small") / "small.beton", samples)
