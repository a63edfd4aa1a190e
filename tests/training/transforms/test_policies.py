"""RandAugment, TrivialAugment and AutoAugment against torchvision's and timm's."""

import random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import chisquare, kstest
from timm.data import auto_augment as timm
from torchvision.transforms import autoaugment as reference
from torchvision.transforms.functional import InterpolationMode, to_pil_image

from ffcv_r50.data.loader import Draw
from ffcv_r50.data.philox import transform_stream
from ffcv_r50.data.pixels import Op, levels
from ffcv_r50.data.pixels.levels import Level
from ffcv_r50.errors import InvalidSetting
from ffcv_r50.keyframes import Varying
from ffcv_r50.training.transforms.auto_augment import IMAGENET, AutoAugment
from ffcv_r50.training.transforms.planned import PlannedOptions
from ffcv_r50.training.transforms.randaugment import (
    RandAugment,
    randaugment_levels,
    timm_levels,
)
from ffcv_r50.training.transforms.trivial_augment import WIDE, TrivialAugment
from tests.data.conftest import make_image
from tests.pixels import FACTORS, NAMES, by_torchvision

DRAW = Draw(np.uint64(5), 3, transform_stream(1))
SIZE = (70, 90)
MANY = np.arange(30_000)
LIKELY = 1e-4
"""Least probability of what is seen, in tests of frequencies; the numbers are always the same."""


def photos(count: int) -> npt.NDArray[np.uint8]:
    return np.stack([make_image(*SIZE, i) for i in range(count)])


POLICIES = {
    "randaugment": RandAugment(ops=3, magnitude=Varying(17)),
    "timm": RandAugment(magnitude=Varying(7), magnitude_std=0.5, increasing=True),
    "trivial_augment": TrivialAugment(),
    "auto_augment": AutoAugment(),
}


@pytest.mark.parametrize("options", POLICIES.values(), ids=POLICIES)
def test_the_plan_carried_out_by_torchvision_gives_our_pixels(options: PlannedOptions) -> None:
    images, views = photos(60), np.arange(100, 160)
    ours = images.copy()
    options.build()(ours, views, DRAW)
    plan = options.plan(SIZE, views, DRAW)
    for i, image in enumerate(images):
        for op, argument in zip(
            plan.ops[i].tolist(), plan.arguments[i, :, 0].tolist(), strict=True
        ):
            none = op in (Op.IDENTITY, Op.INVERT, Op.AUTOCONTRAST, Op.EQUALIZE)
            if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y) and argument % 1:  # timm's
                image = moved_by_timm(image, op, argument)
            else:
                image = by_torchvision(image, Op(op), *([] if none else [argument]))
        assert np.array_equal(ours[i], image), [Op(op).name for op in plan.ops[i]]
    assert (ours != images).any((1, 2, 3)).mean() > 0.5


def moved_by_timm(image: npt.NDArray[np.uint8], op: int, pixels: float) -> npt.NDArray[np.uint8]:
    move = timm.translate_x_abs if op == Op.TRANSLATE_X else timm.translate_y_abs
    given = to_pil_image(image)
    return np.asarray(move(given, -pixels, resample=0, fillcolor=(0, 0, 0)))


def level_of(rows: list[Level], op: Op, share: float, negative: bool) -> float:
    row = next(row for row in levels.table(rows) if row[0] == op)
    return levels.argument(row, share, negative)


@pytest.mark.parametrize(
    ("space", "rows"),
    [
        (reference.RandAugment()._augmentation_space(31, SIZE), randaugment_levels(SIZE)),
        (
            reference.TrivialAugmentWide()._augmentation_space(31),
            [Level(Op.IDENTITY), *levels.torchvision_levels(WIDE)],
        ),
        (
            reference.AutoAugment()._augmentation_space(10, SIZE),
            [Level(Op.INVERT), *randaugment_levels(SIZE)[1:]],
        ),
    ],
    ids=["randaugment", "trivial_augment", "auto_augment"],
)
def test_all_levels_are_torchvisions(space: dict[str, Any], rows: list[Level]) -> None:
    assert [NAMES[name] for name in space if name != "Invert"] == [
        row.op for row in rows if row.op != Op.INVERT
    ]
    for name, (magnitudes, signed) in space.items():
        op = NAMES[name]
        if magnitudes.ndim == 0:
            continue
        for i, magnitude in enumerate(magnitudes.tolist()):
            for sign in (1, -1) if signed else (1,):
                expected = sign * magnitude + (op in FACTORS)
                if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
                    # Its float32 has 15.9999995 pixels where 16 are meant.
                    expected = int(np.round(expected, 4))
                ours = level_of(rows, op, i / (len(magnitudes) - 1), sign < 0)
                assert ours == pytest.approx(expected, rel=1e-6, abs=1e-6), (name, i)


TIMM = {
    "AutoContrast": Op.AUTOCONTRAST,
    "Equalize": Op.EQUALIZE,
    "Invert": Op.INVERT,
    "Rotate": Op.ROTATE,
    "PosterizeIncreasing": Op.POSTERIZE,
    "SolarizeIncreasing": Op.SOLARIZE,
    "SolarizeAdd": Op.SOLARIZE_ADD,
    "ColorIncreasing": Op.SATURATION,
    "ContrastIncreasing": Op.CONTRAST,
    "BrightnessIncreasing": Op.BRIGHTNESS,
    "SharpnessIncreasing": Op.SHARPNESS,
    "ShearX": Op.SHEAR_X,
    "ShearY": Op.SHEAR_Y,
    "TranslateXRel": Op.TRANSLATE_X,
    "TranslateYRel": Op.TRANSLATE_Y,
}


def test_all_levels_are_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(TIMM) == timm._RAND_INCREASING_TRANSFORMS
    rows = timm_levels(SIZE)
    assert [row.op for row in rows] == list(TIMM.values())
    for name, op in TIMM.items():
        function = timm.LEVEL_TO_ARG[name]
        if function is None:
            continue
        for level in np.linspace(0, 10, 81):
            both = set()
            for drawn in (0.1, 0.9):  # timm negates above 0.5
                monkeypatch.setattr(random, "random", lambda drawn=drawn: drawn)
                both.add(round(float(function(level, {})[0]), 9))
            ours = {level_of(rows, op, level / 10, negative) for negative in (False, True)}
            side = {Op.TRANSLATE_X: SIZE[1], Op.TRANSLATE_Y: SIZE[0]}.get(op, 1)
            assert {round(argument / side, 9) for argument in ours} == both, (name, level)


def counts(values: npt.NDArray[Any], of: list[Any]) -> list[int]:
    return [int((values == one).sum()) for one in of]


def test_randaugment_chooses_uniformly_and_independently() -> None:
    plan = RandAugment().plan(SIZE, MANY, DRAW)
    pairs = plan.ops[:, 0] * 100 + plan.ops[:, 1]
    every = [int(op) for op in NAMES.values() if op != Op.INVERT]
    seen = counts(pairs, [100 * a + b for a in every for b in every])
    assert sum(seen) == len(MANY)
    assert chisquare(seen).pvalue > LIKELY
    turns = plan.arguments[plan.ops == Op.ROTATE][:, 0]
    assert set(turns.round(9)) == {9.0, -9.0}
    assert chisquare(counts(np.sign(turns), [-1, 1])).pvalue > LIKELY


def test_timms_operations_are_chosen_uniformly_half_of_them_carried_out() -> None:
    options = RandAugment(magnitude=Varying(7), magnitude_std=0.5, increasing=True)
    plan = options.plan(SIZE, MANY, DRAW)
    for j in range(2):
        seen = counts(plan.ops[:, j], [Op.IDENTITY, *TIMM.values()])
        assert sum(seen) == len(MANY)
        expected = np.array([0.5, *[0.5 / 15] * 15]) * len(MANY)
        assert chisquare(seen, expected).pvalue > LIKELY
    turns = plan.arguments[plan.ops == Op.ROTATE][:, 0]
    assert kstest(np.abs(turns) / 3, "norm", (7, 0.5)).pvalue > LIKELY
    assert chisquare(counts(np.sign(turns), [-1, 1])).pvalue > LIKELY


def test_noise_on_the_magnitude_ends_at_timms_bounds() -> None:
    options = RandAugment(magnitude=Varying(9), magnitude_std=5.0, increasing=True)
    plan = options.plan(SIZE, MANY, DRAW)
    turns = np.abs(plan.arguments[plan.ops == Op.ROTATE][:, 0])
    assert turns.max() == 30
    assert (turns == 30).mean() == pytest.approx(0.4207, abs=0.05)  # beyond 10
    assert turns.min() == 0


def test_trivial_augment_chooses_operation_level_and_sign_uniformly() -> None:
    plan = TrivialAugment().plan(SIZE, MANY, DRAW)
    assert plan.ops.shape == (len(MANY), 1)
    every = [int(op) for op in NAMES.values() if op != Op.INVERT]
    seen = counts(plan.ops, every)
    assert sum(seen) == len(MANY)
    assert chisquare(seen).pvalue > LIKELY
    thresholds = plan.arguments[plan.ops == Op.SOLARIZE][:, 0].round(6)
    seen = counts(thresholds, np.linspace(255, 0, 31).round(6).tolist())
    assert sum(seen) == len(thresholds)
    assert chisquare(seen).pvalue > LIKELY
    factors = plan.arguments[plan.ops == Op.BRIGHTNESS][:, 0]
    seen = counts(np.sign(factors - 1), [-1, 1])
    assert chisquare(seen).pvalue > LIKELY


def test_auto_augments_policy_is_torchvisions() -> None:
    theirs = reference.AutoAugment()._get_policies(reference.AutoAugmentPolicy.IMAGENET)
    assert [
        [(NAMES[name], probability, level or 0) for name, probability, level in pair]
        for pair in theirs
    ] == [list(pair) for pair in IMAGENET]


def test_auto_augment_chooses_as_torchvision() -> None:
    """How often which two operations follow each other, none counted as such."""
    plan = AutoAugment().plan(SIZE, MANY, DRAW)
    expected: dict[int, float] = {}
    for (first, p, _), (second, q, _) in IMAGENET:
        for a, chance_a in ((int(first), p), (0, 1 - p)):
            for b, chance_b in ((int(second), q), (0, 1 - q)):
                share = chance_a * chance_b * len(MANY) / 25
                expected[100 * a + b] = expected.get(100 * a + b, 0) + share
    expected = {pair: share for pair, share in expected.items() if share}
    seen = counts(plan.ops[:, 0] * 100 + plan.ops[:, 1], list(expected))
    assert sum(seen) == len(MANY)
    assert chisquare(seen, list(expected.values())).pvalue > LIKELY
    turns = plan.arguments[plan.ops == Op.ROTATE][:, 0]
    assert set(turns.round(6)) == {
        s * round(30 * level / 9, 6) for s in (1, -1) for level in (3, 8, 9)
    }
    assert chisquare(counts(np.sign(turns), [-1, 1])).pvalue > LIKELY


def test_torchvisions_operations_are_those_of_its_policies() -> None:
    """torchvision's own ``_apply_op`` with our arguments, so that names mean what we take them for."""
    image = make_image(*SIZE, 3)
    for name, op in NAMES.items():
        argument = level_of([Level(Op.INVERT), *randaugment_levels(SIZE)], op, 0.7, False)
        magnitude = argument - (op in FACTORS)
        theirs = reference._apply_op(
            to_pil_image(image), name, magnitude, InterpolationMode.NEAREST, None
        )
        none = op in (Op.IDENTITY, Op.INVERT, Op.AUTOCONTRAST, Op.EQUALIZE)
        ours = by_torchvision(image, op, *([] if none else [argument]))
        assert np.array_equal(ours, np.asarray(theirs)), name


def test_the_magnitude_tapers() -> None:
    options = RandAugment(magnitude=Varying({0: 30, 10: 0}))
    for epoch, degrees in ((0, 30), (5, 15), (10, 0)):
        plan = options.plan(SIZE, MANY[:500], DRAW._replace(epoch=epoch))
        turns = np.abs(plan.arguments[plan.ops == Op.ROTATE][:, 0])
        assert turns == pytest.approx(degrees)
        assert len(turns) > 0


def test_timms_magnitude_above_its_highest_is_refused() -> None:
    RandAugment(magnitude=Varying(11))
    with pytest.raises(InvalidSetting, match="at most 10"):
        RandAugment(magnitude=Varying({0: 5, 3: 11}), increasing=True)
