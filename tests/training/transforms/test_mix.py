"""Mixing against its definition: torchvision's, sample by sample, and Beta's distribution."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ffcv_r50.data.philox import transform_stream
from ffcv_r50.keyframes import Varying
from ffcv_r50.training.protocols import Batch, Step
from ffcv_r50.training.transforms.mix import Mix, beta, draw_pairs

STREAM = transform_stream(1)
SEED = np.uint64(9)


def batch(size: int, side: int = 12, first: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(0)
    some = slice(first, first + size)
    images = torch.randn(64, 3, side, side + 4, generator=generator)[some]
    images = images.to(memory_format=torch.channels_last)
    targets = torch.randint(10, (64,), generator=generator)[some]
    return Batch(images, targets, torch.arange(size), range(first, first + size))


def at(number: int, epoch: float = 0.0) -> Step:
    return Step(int(SEED), number, epoch, {})


def mixed(options: Mix, given: Batch, step: Step) -> tuple[Tensor, Tensor]:
    found = options.build(10, STREAM)(given, step)
    assert found.images.is_contiguous(memory_format=torch.channels_last)
    return found.images, found.targets


@pytest.mark.parametrize(
    "options",
    [
        Mix(mixup=Varying(0.4)),
        Mix(cutmix=Varying(1.0)),
        Mix(mixup=Varying(0.2), cutmix=Varying(1.0)),
    ],
)
def test_each_sample_is_what_its_pairs_draw_says(options: Mix) -> None:
    given = batch(64)
    images, targets = mixed(options, given, at(3))
    alphas = (options.mixup.at(0), options.cutmix.at(0))
    shares, boxes = draw_pairs(SEED, 3, STREAM, 0, 32, alphas, (1.0, 0.5), (12, 16))
    kinds = set()
    for i in range(64):
        share, (top, left, bottom, right) = float(shares[i // 2]), boxes[i // 2].tolist()
        own, other = given.images[i], given.images[i ^ 1]
        if (top, left, bottom, right) == (0, 0, 0, 0):
            expected = share * own + (1 - share) * other
            kinds.add("mixup")
        else:
            expected = own.clone()
            expected[:, top:bottom, left:right] = other[:, top:bottom, left:right]
            # As torchvision's CutMix: the share of what was not covered, after clipping.
            assert share == pytest.approx(1 - (bottom - top) * (right - left) / (12 * 16), abs=1e-6)
            kinds.add("cutmix")
        torch.testing.assert_close(images[i], expected)
        one, two = F.one_hot(given.targets[[i, i ^ 1]], 10).float()
        torch.testing.assert_close(targets[i], share * one + (1 - share) * two)
    assert len(kinds) == (2 if options.mixup.at(0) and options.cutmix.at(0) else 1)


@pytest.mark.parametrize("sizes", [[64], [32, 32], [8] * 8, [2] * 32])
def test_any_cut_of_the_batch_mixes_to_the_same_bits(sizes: list[int]) -> None:
    options = Mix(mixup=Varying(0.2), cutmix=Varying(1.0), probability=Varying(0.8))
    images, targets = mixed(options, batch(64), at(5))
    first = 0
    for size in sizes:
        some, shares = mixed(options, batch(size, first=first), at(5))
        assert torch.equal(some, images[first : first + size])
        assert torch.equal(shares, targets[first : first + size])
        first += size
    for other in (at(6), Step(10, 5, 0.0, {})):
        assert not torch.equal(mixed(options, batch(64), other)[0], images)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.4, 1.0, 2.5])
def test_the_shares_are_betas(alpha: float) -> None:
    """Chi-square over 20 bins of equal probability, which come from numpy's own Beta."""
    draws = np.array([beta(alpha, SEED, 7, STREAM, pair) for pair in range(20_000)])
    reference = np.random.default_rng(0).beta(alpha, alpha, 2_000_000)
    edges = np.quantile(reference, np.linspace(0, 1, 21)[1:-1])
    counts = np.bincount(np.searchsorted(edges, draws), minlength=20)
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 43.8  # 99.9 % of the distribution with 19 degrees of freedom
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / math.sqrt(len(draws))


def test_a_strength_near_zero_mixes_nothing_and_is_finite() -> None:
    draws = np.array([beta(1e-4, SEED, 0, STREAM, pair) for pair in range(2000)])
    assert np.isfinite(draws).all()
    assert np.minimum(draws, 1 - draws).max() < 0.01 or (draws > 0.5).mean() == pytest.approx(
        0.5, abs=0.1
    )


def test_how_often_it_mixes_and_cuts() -> None:
    shares, boxes = draw_pairs(SEED, 0, STREAM, 0, 20_000, (1.0, 1.0), (0.5, 0.25), (32, 32))
    cut = boxes.any(1)
    mixed_up = (shares < 1) & ~cut
    # Four standard deviations; a box may be clipped to nothing, which leaves its pair as it is.
    assert (cut | mixed_up).mean() == pytest.approx(0.5, abs=0.02)
    assert cut.sum() / (cut.sum() + mixed_up.sum()) == pytest.approx(0.25, abs=0.03)


def test_strengths_taper() -> None:
    options = Mix(mixup=Varying({0: 0.2, 2: 0.2, 4: 0}), cutmix=Varying({0: 1, 3: 0}))
    given = batch(32)
    assert not torch.equal(mixed(options, given, at(1, 0.5))[0], given.images)
    # After epoch 3 there is mixup alone, at the end nothing.
    images, targets = mixed(options, given, at(1, 3.5))
    assert ((targets > 0).sum(1) <= 2).all()
    assert not torch.equal(images, given.images)
    images, targets = mixed(options, given, at(1, 4.0))
    assert torch.equal(images, given.images)
    assert torch.equal(targets, F.one_hot(given.targets, 10).float())
