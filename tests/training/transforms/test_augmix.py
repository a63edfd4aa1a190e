"""AugMix against torchvision's."""

import numpy as np
import pytest
from scipy.stats import beta, chisquare, kstest
from torchvision.transforms import AugMix as Reference

from ffcv_r50.data.loader import Draw
from ffcv_r50.data.philox import transform_stream
from ffcv_r50.data.pixels import Op, levels
from ffcv_r50.keyframes import Varying
from ffcv_r50.training.transforms.augmix import AugMix, augmix_levels
from tests.data.conftest import make_image
from tests.pixels import FACTORS, NAMES, by_torchvision

DRAW = Draw(np.uint64(5), 3, transform_stream(1))
SIZE = (60, 90)
MANY = np.arange(20_000)
LIKELY = 1e-4
"""Least probability of what is seen; the numbers are always the same."""


@pytest.mark.parametrize(
    "options", [AugMix(), AugMix(width=2, depth=4, severity=9, all_ops=False)], ids=["", "deep"]
)
def test_chains_by_torchvision_mixed_in_float64_give_our_pixels(options: AugMix) -> None:
    images, views = np.stack([make_image(*SIZE, i) for i in range(20)]), np.arange(100, 120)
    ours = images.copy()
    options.build()(ours, views, DRAW)
    ops, arguments, weights = options.plan(SIZE, views, DRAW)
    assert ops.shape == (20, options.width, options.depth if options.depth > 0 else 3)
    for i, image in enumerate(images):
        mixed = weights[i, 0].astype(float) * image
        for c in range(options.width):
            chain = image
            for op, value in zip(ops[i, c].tolist(), arguments[i, c, :, 0].tolist(), strict=True):
                none = op in (Op.IDENTITY, Op.AUTOCONTRAST, Op.EQUALIZE)
                chain = by_torchvision(chain, Op(op), *([] if none else [value]))
            mixed += weights[i, 1 + c].astype(float) * chain
        # Cut off; what float32 puts on the other side of a whole number may be either.
        assert ((ours[i] >= mixed - 1.001) & (ours[i] <= mixed + 0.001)).all()
    assert (ours != images).any((1, 2, 3)).all()


@pytest.mark.parametrize("all_ops", [True, False])
def test_all_levels_are_torchvisions(all_ops: bool) -> None:
    space = Reference(all_ops=all_ops)._augmentation_space(10, SIZE)
    table = {int(row[0]): row for row in levels.table(augmix_levels(SIZE, all_ops))}
    assert set(table) == {NAMES[name] for name in space}
    for name, (magnitudes, signed) in space.items():
        op = NAMES[name]
        for i, magnitude in enumerate(magnitudes.tolist() if magnitudes.ndim else []):
            for sign in (1, -1) if signed else (1,):
                expected = sign * magnitude + (op in FACTORS)
                if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
                    expected = int(np.round(expected, 4))
                ours = levels.argument(table[op], i / 9, sign < 0)
                assert ours == pytest.approx(expected, rel=1e-6, abs=1e-6), (name, i)


def test_chains_draw_uniformly() -> None:
    plan = AugMix().plan(SIZE, MANY, DRAW)
    counts = (plan.ops != Op.IDENTITY).sum(-1)
    pairs = counts[:, 0] * 10 + counts[:, 1]
    seen = [int((pairs == 10 * a + b).sum()) for a in (1, 2, 3) for b in (1, 2, 3)]
    assert sum(seen) == len(MANY)
    assert chisquare(seen).pvalue > LIKELY
    every = [row.op for row in augmix_levels(SIZE, True)]
    for chosen in (plan.ops[:, 0, 0], plan.ops[:, 2, 0], plan.ops[plan.ops != Op.IDENTITY]):
        seen = [int((chosen == op).sum()) for op in every]
        assert sum(seen) == chosen.size
        assert chisquare(seen).pvalue > LIKELY
    degrees = plan.arguments[plan.ops == Op.ROTATE][:, 0].round(6)
    seen = [int((degrees == round(value, 6)).sum()) for value in (-20 / 3, -10 / 3, 10 / 3, 20 / 3)]
    zeros = int((degrees == 0).sum())
    assert sum(seen) + zeros == len(degrees)
    assert chisquare([zeros / 2, zeros / 2, *seen]).pvalue > LIKELY


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_weights_are_beta_and_dirichlet(alpha: float) -> None:
    weights = AugMix(alpha=Varying(alpha)).plan(SIZE, MANY, DRAW).weights.astype(float)
    assert weights.sum(1) == pytest.approx(1, abs=1e-6)
    assert kstest(weights[:, 0], beta(alpha, alpha).cdf).pvalue > LIKELY
    sure = weights[:, 0] < 0.999  # a share of what float32 still tells from nothing
    for c in (1, 2, 3):
        shares = weights[sure, c] / (1 - weights[sure, 0])
        assert kstest(shares, beta(alpha, 2 * alpha).cdf).pvalue > LIKELY
