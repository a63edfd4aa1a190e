"""Every transform of single images: a function of seed, epoch, view and row, whoever asks."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ffcv_r50.data.beton import Beton
from ffcv_r50.data.loader import Draw, ImageTransform, TrainLoader
from ffcv_r50.data.philox import philox4x32, transform_stream
from ffcv_r50.keyframes import Varying
from ffcv_r50.training.transforms import (
    TRANSFORMS,
    ImageOptions,
    augmix,
    auto_augment,
    planned,
    randaugment,
)
from ffcv_r50.training.transforms.affine import Affine
from ffcv_r50.training.transforms.augmix import AugMix
from ffcv_r50.training.transforms.auto_augment import AutoAugment
from ffcv_r50.training.transforms.blur import Blur
from ffcv_r50.training.transforms.coarse_dropout import CoarseDropout
from ffcv_r50.training.transforms.color_jitter import ColorJitter
from ffcv_r50.training.transforms.grayscale import Grayscale
from ffcv_r50.training.transforms.randaugment import RandAugment
from ffcv_r50.training.transforms.trivial_augment import TrivialAugment
from tests.data.conftest import encode, make_image, write_beton

DRAW = Draw(np.uint64(5), 3, transform_stream(0))
OPTIONS = {
    "affine": Affine(),
    "augmix": AugMix(),
    "auto_augment": AutoAugment(),
    "blur": Blur(),
    "coarse_dropout": CoarseDropout(holes=(1, 5)),
    "color_jitter": ColorJitter(hue=Varying(0.1), probability=Varying(0.7)),
    "grayscale": Grayscale(probability=Varying(0.5)),
    "randaugment": RandAugment(),
    "timm": RandAugment(magnitude=Varying(7), magnitude_std=0.5, increasing=True),
    "trivial_augment": TrivialAugment(),
}

Pixels = npt.NDArray[np.uint8]


def images(count: int) -> Pixels:
    """The same one over and over: what differs between them is the transform's."""
    return np.repeat(make_image(24, 30)[None], count, 0)


def test_each_of_our_transforms_of_images_is_here() -> None:
    every = [TRANSFORMS[name] for name in TRANSFORMS.names]
    ours = {kind for kind in every if kind.__module__.startswith("ffcv_r50.")}
    assert {kind for kind in ours if issubclass(kind, ImageOptions)} == {
        type(options) for options in OPTIONS.values()
    }


@pytest.fixture(params=[*OPTIONS.values()], ids=[*OPTIONS])
def transform(request: pytest.FixtureRequest) -> ImageTransform:
    options: ImageOptions = request.param
    return options.build()


@pytest.mark.parametrize("cuts", [[1, 2, 3], [17], list(range(1, 40))])
def test_any_cut_of_the_views_in_any_order(transform: ImageTransform, cuts: list[int]) -> None:
    views = np.random.default_rng(1).permutation(40) + (np.arange(40) % 3 << 32)
    whole = images(40)
    transform(whole, views, DRAW)
    assert len(np.unique(whole.reshape(40, -1), axis=0)) > 1
    again = images(40)
    order = np.random.default_rng(2).permutation(40)
    for begin, end in itertools.pairwise([0, *cuts, 40]):
        part = order[begin:end]
        some = images(len(part))
        transform(some, views[part], DRAW)
        again[part] = some
    assert np.array_equal(again, whole)


@pytest.mark.parametrize(
    "other",
    [
        DRAW._replace(seed=np.uint64(6)),
        DRAW._replace(seed=np.uint64(5 + 2**32)),
        DRAW._replace(epoch=4),
        DRAW._replace(stream=transform_stream(1)),
    ],
    ids=["seed", "upper half of the seed", "epoch", "row"],
)
def test_others_in_another_epoch_seed_and_row(transform: ImageTransform, other: Draw) -> None:
    views = np.arange(40)
    first, second = images(40), images(40)
    transform(first, views, DRAW)
    transform(second, views, other)
    assert (first != second).any((1, 2, 3)).mean() > 0.1


def test_repetitions_of_a_sample_differ(transform: ImageTransform) -> None:
    first, second = images(40), images(40)
    transform(first, np.arange(40), DRAW)
    transform(second, np.arange(40) + (1 << 32), DRAW)
    assert (first != second).any((1, 2, 3)).mean() > 0.1


MODULES = (augmix, auto_augment, planned, randaugment)
"""Those whose compiled functions draw."""


@pytest.mark.parametrize("name", OPTIONS)
def test_counters_are_of_the_seed_view_epoch_and_row_and_none_is_used_twice(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiled function run as Python, where its generator can be watched."""
    views, draw = [7, 8 + (2 << 32)], DRAW._replace(stream=transform_stream(3))
    options: Any = OPTIONS[name]
    expected = options.plan((24, 30), np.array(views), draw)
    used: list[tuple[int, ...]] = []

    def watched(view: int, *more: Any) -> Any:
        counter = (view & 0xFFFFFFFF, view >> 32, *more)
        used.append(tuple(int(word) for word in counter))
        return philox4x32(*counter)

    for module in MODULES:
        monkeypatch.setattr(module, "of_view", watched)
        function = "_fill" if module is planned else "_choose"
        monkeypatch.setattr(module, function, getattr(module, function).py_func)
    again = options.plan((24, 30), np.array(views), draw)
    for one, other in zip(again, expected, strict=True):
        assert np.allclose(one, other, rtol=1e-6)
    assert len(set(used)) == len(used)
    assert {counter[:2] for counter in used} == {(7, 0), (8, 2)}
    for _, _, epoch, stream, seed in used:
        assert (epoch, seed) == (3, 5)
        assert transform_stream(3) <= stream < transform_stream(4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    samples = [encode(make_image(40 + i, 50, i)) for i in range(48)]
    return write_beton(tmp_path_factory.mktemp("images") / "images.beton", samples)


def seen(
    dataset: Beton,
    transforms: Sequence[ImageTransform],
    *,
    workers: int,
    ranks: int,
    micro_batch_size: int,
) -> dict[int, list[bytes]]:
    """The images of an epoch by their samples."""
    found: dict[int, list[bytes]] = {}
    for rank in range(ranks):
        loader = TrainLoader(
            dataset,
            seed=7,
            batch_size=24,
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=ranks,
            num_workers=workers,
            transforms=transforms,
            repeats=2,
        )
        with loader.epoch(2, 32) as batches:
            for batch in batches:
                for image, index in zip(batch.images.numpy(), batch.indices.tolist(), strict=True):
                    found.setdefault(index, []).append(image.tobytes())
    return {index: sorted(both) for index, both in found.items()}


def test_threads_ranks_and_batches_do_not_matter(dataset: Beton) -> None:
    """All transforms in a row, two of them twice."""
    rows = [*OPTIONS.values(), RandAugment(), RandAugment()]
    transforms = [options.build() for options in rows]
    whole = seen(dataset, transforms, workers=1, ranks=1, micro_batch_size=24)
    assert sum(map(len, whole.values())) == 48
    for workers, ranks, micro_batch_size in ((3, 1, 24), (2, 1, 6), (1, 2, 12), (2, 4, 3)):
        again = seen(
            dataset, transforms, workers=workers, ranks=ranks, micro_batch_size=micro_batch_size
        )
        assert again == whole
    assert seen(dataset, [], workers=1, ranks=1, micro_batch_size=24) != whole
