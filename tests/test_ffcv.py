"""Our decoders inside FFCV's own loader: pixels, epochs, orders, threads.

Most of it runs with FFCV's compiler switched off (it takes seconds for each loader); what our operations call is
compiled in any case.
"""

import gc
import queue
import warnings
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
from numba.core import event
from PIL import Image

from ffcv_r50.data import beton, jpeg
from ffcv_r50.data.beton import Beton
from ffcv_r50.data.loader import EvalLoader, TrainLoader
from ffcv_r50.errors import UserError
from ffcv_r50.ffcv import (
    CenterCropRGBImageDecoder,
    RandomResizedCropRGBImageDecoder,
    _decode_sample,
)
from tests.data.conftest import encode, make_image, write_beton

SAMPLES, BATCH, SEED = 40, 8, 7
Images = dict[int, npt.NDArray[np.uint8]]
"""By label, which is the sample's index here."""


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """FFCV sets the numbers of threads of numba and torch, and leaves its files to the garbage collector."""
    before = numba.get_num_threads(), torch.get_num_threads()
    yield
    Compiler.set_num_threads(before[0])
    torch.set_num_threads(before[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def interpreted() -> Iterator[None]:
    """FFCV's pipelines as Python."""
    Compiler.set_enabled(False)
    yield
    Compiler.set_enabled(True)


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


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    """Sample 2 is half a JPEG, sample 5 has another size than the file says."""
    samples: list[Any] = [encode(make_image(50 + i, 70, i), interval=1) for i in range(BATCH)]
    samples[2] = samples[2][: len(samples[2]) // 2]
    samples[5] = encode(make_image(30, 30, 5))
    sizes = [(50 + i, 70) for i in range(BATCH)]
    path = tmp_path_factory.mktemp("ffcv") / "damaged.beton"
    write_beton(path, samples, sizes)
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


def loader(dataset: Beton, decoder: Any, **settings: Any) -> Any:
    """FFCV's."""
    defaults: dict[str, Any] = {"num_workers": 1, "seed": 1, "order": OrderOption.RANDOM}
    return Loader(
        str(dataset.path),
        batch_size=BATCH,
        pipelines={"image": [decoder, ToTensor()], "label": [IntDecoder(), ToTensor(), Squeeze()]},
        **{**defaults, **settings},
    )


def next_batch(epoch: Any) -> Any:
    """FFCV's next batch, or None. Its own ``next`` waits for ever for a thread that has failed."""
    for _ in range(120):
        running = epoch.is_alive()
        try:
            return epoch.output_queue.get(timeout=1)
        except queue.Empty:
            assert running, "FFCV's thread has ended without a batch"
    raise AssertionError("FFCV's thread has made no batch in two minutes")


def end(epoch: Any) -> None:
    epoch.close()
    epoch.join(timeout=60)
    assert not epoch.is_alive()


def shown(theirs: Any) -> Images:
    """The images of FFCV's next epoch."""
    epoch, images = iter(theirs), {}
    try:
        while (batch := next_batch(epoch)) is not None:
            _, (pixels, labels) = batch
            for image, label in zip(pixels, labels, strict=True):
                images[int(label)] = image.numpy().copy()
    finally:
        end(epoch)
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
    assert one.keys() == other.keys()
    return all(np.array_equal(one[i], other[i]) for i in one)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("order", "os_cache", "batches_ahead"),
    [("RANDOM", True, 3), ("SEQUENTIAL", True, 1), ("QUASI_RANDOM", False, 1)],
)
def test_random_crops_are_those_of_our_loader(
    dataset: Beton, order: str, os_cache: bool, batches_ahead: int
) -> None:
    """Two epochs, another resolution in the second, one that is left early, then a run that goes on."""
    decoder = RandomResizedCropRGBImageDecoder(
        (24, 24), (0.3, 0.9), (0.9, 1.2), seed=SEED, flip=0.5
    )
    theirs = loader(
        dataset,
        decoder,
        order=OrderOption[order],
        os_cache=os_cache,
        batches_ahead=batches_ahead,
    )
    theirs.generate_code()  # as with recompile=True: no epoch begins by that
    changes: dict[str, Any] = {"crop_scale": (0.3, 0.9), "crop_ratio": (0.9, 1.2), "flip": 0.5}
    first = shown(theirs)
    assert len(first) == SAMPLES
    assert same(first, ours(dataset, 0, 24, **changes))
    decoder.output_size = (16, 16)
    assert same(shown(theirs), ours(dataset, 1, 16, **changes))
    left = iter(theirs)
    next_batch(left)
    end(left)
    fourth = shown(theirs)
    assert same(fourth, ours(dataset, 3, 16, **changes))
    decoder.epoch = 8
    ninth = shown(theirs)
    assert same(ninth, ours(dataset, 8, 16, **changes))
    assert not same(fourth, ninth)


@pytest.mark.usefixtures("interpreted")
def test_center_crops_are_those_of_our_loader(dataset: Beton) -> None:
    images = shown(loader(dataset, CenterCropRGBImageDecoder((24, 24), 0.875)))
    expected = EvalLoader(dataset, batch_size=SAMPLES, resolution=24, crop_ratio=0.875)
    with expected.epoch() as batches:
        pixels = next(batches).images.numpy()
    assert same(images, dict(enumerate(pixels)))


@pytest.mark.usefixtures("interpreted")
def test_images_need_not_be_square(dataset: Beton) -> None:
    """Pillow's resize of a raw sample's central square, within 1 of 255."""
    images = shown(loader(dataset, CenterCropRGBImageDecoder((32, 16), 1.0)))
    height, width = int(dataset.heights[0]), int(dataset.widths[0])
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = make_image(height, width, 0)[top : top + side, left : left + side]
    expected = Image.fromarray(square).resize((16, 32), Image.Resampling.BILINEAR)
    assert np.abs(images[0].astype(int) - np.asarray(expected).astype(int)).max() <= 1


@pytest.mark.slow  # FFCV compiles
def test_several_workers_and_bad_images(damaged: Beton, caplog: pytest.LogCaptureFixture) -> None:
    """Two epochs by two workers, each with two warnings; FFCV's thread compiles nothing of ours."""
    seen: set[str] = set()

    class Compiled(event.Listener):
        def on_start(self, event: event.Event) -> None:
            seen.add(event.data["dispatcher"].py_func.__module__)

        def on_end(self, event: event.Event) -> None:
            pass

    decoder = RandomResizedCropRGBImageDecoder((24, 24), seed=SEED)
    expected = [ours(damaged, epoch, 24, bad_images="gray") for epoch in range(2)]
    caplog.clear()
    with event.install_listener("numba:compile", Compiled()):
        theirs = loader(damaged, decoder, num_workers=2)
        for images in expected:
            assert same(shown(theirs), images)
    assert "ffcv_r50.ffcv" in seen
    assert not [module for module in seen if module.startswith("ffcv_r50.data")]
    assert (images[2] == 128).all()
    assert (images[5] == 128).all()
    messages = [record.getMessage() for record in caplog.records if record.name == "ffcv_r50.ffcv"]
    assert sorted(message.split(":")[0] for message in messages) == [
        "sample 2 cannot be decoded",
        "sample 2 cannot be decoded",
        "sample 5 cannot be decoded",
        "sample 5 cannot be decoded",
    ]


@pytest.mark.parametrize("size", [(50, 50), (0, 0)])
def test_pixels_that_are_too_few(size: tuple[int, int]) -> None:
    """FFCV's loader takes files that ours refuses."""
    data, image = np.zeros(10, np.uint8), np.zeros((4, 4, 3), np.uint8)
    status = _decode_sample().ctypes(
        *(0, 0, 0, False, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, False),
        *(data.ctypes.data, data.size if size[0] else 0, True, *size, image.ctypes.data, 4, 4),
    )
    assert status == jpeg.WRONG_SIZE
    assert (image == 128).all()


@pytest.mark.usefixtures("interpreted")
def test_numbas_types_stay_as_they_are(dataset: Beton) -> None:
    """FFCV's own Loader makes numba's type of contiguous bytes read-only, for all that is compiled."""
    contiguous = numba.uint8[::1]

    @numba.njit
    def first(array):  # type: ignore[no-untyped-def]
        return array[0]

    @numba.njit
    def first_of_new():  # type: ignore[no-untyped-def]
        return first(np.ones(3, np.uint8))

    assert first(np.ones(2, np.uint8)) == 1
    loader(dataset, CenterCropRGBImageDecoder((16, 16), 1.0))
    assert contiguous.mutable
    assert first_of_new() == 1


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


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("size", [224, (224,), (16, 0), ("16", "16")])
def test_sizes_that_make_no_sense(dataset: Beton, size: Any) -> None:
    with pytest.raises(UserError, match="give height and width in pixels"):
        loader(dataset, CenterCropRGBImageDecoder(size, 1.0))
