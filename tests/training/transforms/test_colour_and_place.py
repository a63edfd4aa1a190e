"""Colour jitter, grayscale, blur, affine maps and coarse dropout: what they draw, and the pixels of it."""

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import chisquare, kstest

from ffcv_r50.data.loader import Draw
from ffcv_r50.data.philox import transform_stream
from ffcv_r50.data.pixels import Op
from ffcv_r50.errors import InvalidSetting
from ffcv_r50.keyframes import Varying
from ffcv_r50.training.transforms.affine import Affine
from ffcv_r50.training.transforms.blur import Blur
from ffcv_r50.training.transforms.coarse_dropout import CoarseDropout
from ffcv_r50.training.transforms.color_jitter import ColorJitter
from ffcv_r50.training.transforms.grayscale import Grayscale
from ffcv_r50.training.transforms.normalize import IMAGENET, Statistics
from ffcv_r50.training.transforms.planned import PlannedOptions
from tests.data.conftest import make_image
from tests.pixels import by_torchvision

DRAW = Draw(np.uint64(5), 3, transform_stream(1))
SIZE = (60, 90)
MANY = np.arange(20_000)
LIKELY = 1e-4
"""Least probability of what is seen; the numbers are always the same."""


def uniform(values: npt.NDArray[np.float64], low: float, high: float) -> bool:
    return bool(kstest(values, "uniform", (low, high - low)).pvalue > LIKELY)


def independent(*columns: npt.NDArray[np.float64]) -> bool:
    """No two are correlated, by four and a half standard deviations."""
    seen = np.corrcoef(columns) - np.eye(len(columns))
    return bool(np.abs(seen).max() < 4.5 / np.sqrt(len(columns[0])))


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (ColorJitter(hue=Varying(0.2), probability=Varying(0.8)), 1),
        (Grayscale(probability=Varying(0.5)), 0),
        (Affine(), 4),
    ],
    ids=["color_jitter", "grayscale", "affine"],
)
def test_the_plan_carried_out_by_torchvision_gives_our_pixels(
    options: PlannedOptions, arguments: int
) -> None:
    images, views = np.stack([make_image(*SIZE, i) for i in range(30)]), np.arange(100, 130)
    ours = images.copy()
    options.build()(ours, views, DRAW)
    plan = options.plan(SIZE, views, DRAW)
    for i, image in enumerate(images):
        for op, row in zip(plan.ops[i].tolist(), plan.arguments[i].tolist(), strict=True):
            image = by_torchvision(image, Op(op), *(row[:arguments] if op != Op.IDENTITY else ()))
        assert np.array_equal(ours[i], image)
    assert 0.2 < (ours != images).any((1, 2, 3)).mean() < 1


def test_colour_jitter_draws_factors_and_orders_uniformly() -> None:
    options = ColorJitter(contrast=Varying(0.2), saturation=Varying(1.5), hue=Varying(0.1))
    plan = options.plan(SIZE, MANY, DRAW)
    factors = plan.arguments[..., 0]
    assert uniform(factors[plan.ops == Op.BRIGHTNESS], 0.6, 1.4)
    assert uniform(factors[plan.ops == Op.CONTRAST], 0.8, 1.2)
    assert uniform(factors[plan.ops == Op.SATURATION], 0.0, 2.5)
    assert uniform(factors[plan.ops == Op.HUE], -0.1, 0.1)
    order = np.argsort(plan.ops, axis=1)
    first = (order[:, 0] == 0).astype(float)
    assert independent(*np.take_along_axis(factors, order, 1).T, first)
    every = itertools.permutations([Op.BRIGHTNESS, Op.CONTRAST, Op.SATURATION, Op.HUE])
    seen = [int((plan.ops == order).all(1).sum()) for order in every]
    assert sum(seen) == len(MANY)
    assert chisquare(seen).pvalue > LIKELY


def test_colour_jitter_leaves_out_what_has_no_strength_and_tapers() -> None:
    options = ColorJitter(brightness=Varying({0: 0.4, 6: 0}), saturation=Varying(0))
    plan = options.plan(SIZE, MANY, DRAW)
    assert set(plan.ops.ravel().tolist()) == {Op.IDENTITY, Op.BRIGHTNESS, Op.CONTRAST}
    assert uniform(plan.arguments[plan.ops == Op.BRIGHTNESS][:, 0], 0.8, 1.2)
    plan = options.plan(SIZE, MANY, DRAW._replace(epoch=6))
    assert set(plan.ops.ravel().tolist()) == {Op.IDENTITY, Op.CONTRAST}


@pytest.mark.parametrize(
    "make",
    [
        lambda chance: ColorJitter(probability=chance),
        lambda chance: Grayscale(probability=chance),
        lambda chance: Blur(probability=chance),
        lambda chance: Affine(probability=chance),
        lambda chance: CoarseDropout(probability=chance),
    ],
    ids=["color_jitter", "grayscale", "blur", "affine", "coarse_dropout"],
)
def test_as_many_as_asked_and_tapering(make: Callable[[Varying], PlannedOptions]) -> None:
    options = make(Varying({0: 0.4, 6: 0}))
    for epoch, share in ((0, 0.4), (3, 0.2), (6, 0.0)):
        plan = options.plan(SIZE, MANY, DRAW._replace(epoch=epoch))
        changed = (plan.ops != Op.IDENTITY).any(1).mean()
        assert changed == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / len(MANY)))
    assert (make(Varying(1)).plan(SIZE, MANY, DRAW).ops != Op.IDENTITY).any(1).all()


def test_blur_and_affine_draw_uniformly() -> None:
    plan = Blur(sigma=(0.5, 3.0)).plan(SIZE, MANY, DRAW)
    assert uniform(plan.arguments[:, 0, 0], 0.5, 3.0)
    options = Affine(rotate=Varying({0: 40, 6: 0}), shift=Varying(0.1), scale=(0.5, 2))
    plan = options.plan(SIZE, MANY, DRAW)
    degrees, scale, right, down = plan.arguments[:, 0, :4].T
    assert uniform(degrees, -20, 20)
    assert uniform(scale, 0.5, 2)
    assert independent(degrees, scale, right, down, (plan.ops[:, 0] == Op.AFFINE).astype(float))
    for pixels, most in ((right, 9), (down, 6)):
        seen = [int((pixels == move).sum()) for move in range(-most, most + 1)]
        assert sum(seen) == len(MANY)
        expected = np.array([0.5, *[1.0] * (2 * most - 1), 0.5]) * len(MANY) / (2 * most)
        assert chisquare(seen, expected).pvalue > LIKELY


def test_boxes_lie_inside_anywhere_alike() -> None:
    options = CoarseDropout(holes=(2, 4), size=(0.1, 0.3), probability=Varying(1))
    plan = options.plan(SIZE, MANY, DRAW)
    present = plan.ops == Op.BOX
    seen = [int((present.sum(1) == count).sum()) for count in (2, 3, 4)]
    assert sum(seen) == len(MANY)
    assert chisquare(seen).pvalue > LIKELY
    top, left, bottom, right = plan.arguments[present][:, :4].T
    across, down = left / (90 - (right - left)), top / (60 - (bottom - top))
    assert independent(across, down, right - left, bottom - top)
    for begin, end, side in ((top, bottom, 60), (left, right, 90)):
        extent = end - begin
        sizes = range(round(0.1 * side), round(0.3 * side))
        assert chisquare([int((extent == size).sum()) for size in sizes]).pvalue > LIKELY
        assert set(extent.tolist()) == set(map(float, sizes))
        places = begin[extent == sizes[3]]
        found = [int((places == at).sum()) for at in range(side - sizes[3] + 1)]
        assert sum(found) == len(places)
        assert chisquare(found).pvalue > LIKELY


def test_boxes_reach_from_border_to_border() -> None:
    options = CoarseDropout(holes=(1, 1), size=(1, 1), probability=Varying(1), fill="mean")
    images = make_image(7, 9)[None].copy()
    options.build()(images, np.arange(1), DRAW)
    assert (images == np.array([124, 116, 104])).all()
    options.build(Statistics((0.25, 1.0, 0.0), IMAGENET.std))(images, np.arange(1), DRAW)
    assert (images == np.array([64, 255, 0])).all()
    options = CoarseDropout(size=(0.01, 0.01), probability=Varying(1))
    plan = options.plan((7, 9), MANY, DRAW)
    top, left, bottom, right = plan.arguments[plan.ops == Op.BOX][:, :4].T
    assert (bottom - top == 1).all()
    assert (right - left == 1).all()
    assert set(top.tolist()) == set(range(7))
    assert set(left.tolist()) == set(range(9))


def test_a_range_the_wrong_way_round_is_refused() -> None:
    for make in (
        lambda: Blur(sigma=(2, 1)),
        lambda: Affine(scale=(2, 1)),
        lambda: CoarseDropout(size=(0.3, 0.2)),
        lambda: CoarseDropout(holes=(3, 2)),
    ):
        with pytest.raises(InvalidSetting, match=r"is not \[lowest, highest\]"):
            make()
