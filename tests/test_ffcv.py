"""Our decoders inside FFCV's own loader: pixels, epochs, orders, threads."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pytest
import torch
from ffcv.fields.decoders import IntDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline.compiler import Compiler
from ffcv.transforms import Squeeze, ToTensor

from ffcv_r50.data import beton
from ffcv_r50.data.beton import Beton
from ffcv_r50.data.loader import EvalLoader, TrainLoader
from ffcv_r50.errors import UserError
from ffcv_r50.ffcv import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from tests.data.conftest import encode, make_image, write_beton

pytestmark = pytest.mark.slow  # FFCV compiles each loader anew
SAMPLES, BATCH, SEED = 60, 10, 7
Images = dict[int, npt.NDArray[np.uint8]]
"""By label, which is the sample's index here."""


@pytest.fixture(scope="module", autouse=True)
def _threads_as_before() -> Iterator[None]:
    """FFCV sets the numbers of threads of numba and torch."""
    before = numba.get_num_threads(), torch.get_num_threads()
    yield
    Compiler.set_num_threads(before[0])
    torch.set_num_threads(before[1])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    """Tiled, plain and gray JPEGs and raw pixels of different sizes, on several pages."""
    rng = np.random.default_rng(7)
    samples: list[Any] = []
    for i in range(SAMPLES):
        height, width = (int(side) for side in rng.integers(40, 140, 2))
        pixels = make_image(height, width, i)
        samples.append(
            [pixels, encode(pixels), encode(pixels[..., :1]), encode(pixels, interval=1)][i % 4]
        )
    path = tmp_path_factory.mktemp("ffcv") / "small.beton"
    write_beton(path, samples, page_size=1 << 17)
    return named(path)


def named(path: Path) -> Beton:
    """Name the fields, and give each sample its index as label, which says which one an image is."""
    fields = np.fromfile(path, beton.FIELD, 2, offset=beton.HEADER.itemsize)
    for field, name in zip(fields["name"], (b"image", b"label"), strict=True):
        field[: len(name)] = list(name)
    begin = beton.HEADER.itemsize + fields.nbytes
    dtype = beton.metadata_dtype([beton.TYPE_IMAGE, beton.TYPE_INT])
    metadata = np.fromfile(path, dtype, Beton(path).num_samples, offset=begin)
    metadata["f1"] = np.arange(len(metadata))
    with open(path, "r+b") as file:
        file.seek(beton.HEADER.itemsize)
        file.write(fields.tobytes() + metadata.tobytes())
    return Beton(path)


def loader(dataset: Beton, decoder: Any, **settings: Any) -> Loader:
    defaults: dict[str, Any] = {"num_workers": 2, "seed": 1, "order": OrderOption.RANDOM}
    return Loader(
        str(dataset.path),
        batch_size=BATCH,
        pipelines={"image": [decoder, ToTensor()], "label": [IntDecoder(), ToTensor(), Squeeze()]},
        **{**defaults, **settings},
    )


def shown(batches: Iterator[Any]) -> Images:
    images = {
        int(label): image.numpy().copy()
        for pixels, labels in batches
        for image, label in zip(pixels, labels, strict=True)
    }
    return images


def ours(dataset: Beton, epoch: int, resolution: int, **changes: Any) -> Images:
    settings: dict[str, Any] = {"seed": SEED, "flip": 0.0, **changes}
    whole = TrainLoader(dataset, batch_size=BATCH, micro_batch_size=BATCH, **settings)
    with whole.epoch(epoch, resolution) as batches:
        return {
            int(index): image.numpy().copy()
            for batch in batches
            for image, index in zip(batch.images, batch.indices, strict=True)
        }


def same(one: Images, other: Images) -> bool:
    return all(np.array_equal(one[i], other[i]) for i in range(SAMPLES))


def test_random_crops_are_those_of_our_loader(dataset: Beton) -> None:
    """Two epochs, another resolution in the second, then a run that goes on with the ninth."""
    decoder = RandomResizedCropRGBImageDecoder((24, 24), seed=SEED, flip=0.5)
    theirs = loader(dataset, decoder, num_workers=2)
    theirs.generate_code()  # as with recompile=True: no epoch begins by that
    assert decoder.epoch == 0
    assert same(shown(theirs), ours(dataset, 0, 24, flip=0.5))
    decoder.output_size = (16, 16)
    second = shown(theirs)
    assert same(second, ours(dataset, 1, 16, flip=0.5))
    decoder.epoch = 8
    third = shown(theirs)
    assert same(third, ours(dataset, 8, 16, flip=0.5))
    assert not same(second, third)


def test_their_own_cache_and_order_show_the_same(dataset: Beton) -> None:
    """Pages read by FFCV, quasi-random order, one thread, one batch ahead; an epoch left early."""
    decoder = RandomResizedCropRGBImageDecoder((16, 16), (0.3, 0.9), (0.9, 1.2), seed=SEED)
    settings: dict[str, Any] = {
        "order": OrderOption.QUASI_RANDOM,
        "os_cache": False,
        "batches_ahead": 1,
    }
    theirs = loader(dataset, decoder, num_workers=1, **settings)
    left = iter(theirs)
    next(left)
    left.close()
    left.join(timeout=5)
    changes = {"crop_scale": (0.3, 0.9), "crop_ratio": (0.9, 1.2)}
    assert same(shown(theirs), ours(dataset, 1, 16, **changes))


def test_center_crops_and_a_damaged_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = bytearray(encode(make_image(60, 70, 3)))
    del damaged[len(damaged) // 2 :]
    good = [encode(make_image(50 + i, 70, i), interval=1) for i in range(BATCH - 1)]
    write_beton(tmp_path / "damaged.beton", [*good, bytes(damaged)])
    file = named(tmp_path / "damaged.beton")
    theirs = loader(file, CenterCropRGBImageDecoder((24, 24), 0.875), order=OrderOption.SEQUENTIAL)
    with caplog.at_level(logging.WARNING):
        images = shown(theirs)
    expected = EvalLoader(
        file, batch_size=BATCH, resolution=24, crop_ratio=0.875, bad_images="gray"
    )
    with expected.epoch() as batches:
        assert all(
            np.array_equal(images[i], image.numpy()) for i, image in enumerate(next(batches).images)
        )
    assert (images[BATCH - 1] == 128).all()
    messages = [record.getMessage() for record in caplog.records if record.name == "ffcv_r50.ffcv"]
    assert len(messages) == 1
    assert messages[0].startswith(f"sample {BATCH - 1} cannot be decoded: ")


def test_without_a_seed_crops_differ_from_run_to_run() -> None:
    one, other = (RandomResizedCropRGBImageDecoder((16, 16)) for _ in range(2))
    assert one._sampling.seed != other._sampling.seed


@pytest.mark.parametrize(
    "settings", [{"scale": (0, 1)}, {"scale": (0.5, 1.5)}, {"ratio": (2, 1)}, {"flip": 2}]
)
def test_values_that_make_no_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"give|lies between"):
        RandomResizedCropRGBImageDecoder((16, 16), **settings)
    with pytest.raises(UserError, match=r"ratio is 1\.5; choose"):
        CenterCropRGBImageDecoder((16, 16), 1.5)
