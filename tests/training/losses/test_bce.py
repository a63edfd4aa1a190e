"""Binary cross-entropy as timm's, and number by number."""

import math

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss.binary_cross_entropy import BinaryCrossEntropy as Timms
from torch import Tensor

from ffcv_r50.errors import UserError
from ffcv_r50.training.losses.bce import BinaryCrossEntropy
from ffcv_r50.training.protocols import Step

N, CLASSES = 7, 11


def loss_of(
    options: BinaryCrossEntropy, logits: Tensor, targets: Tensor, smoothing: float
) -> Tensor:
    step = Step(1, 0, 0.0, {"label_smoothing": smoothing})
    return options.build(CLASSES)(logits, targets, step)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(N, CLASSES, generator=torch.Generator().manual_seed(0)) * 5


@pytest.fixture
def classes() -> Tensor:
    return torch.randint(CLASSES, (N,), generator=torch.Generator().manual_seed(1))


def by_hand(logits: Tensor, shares: list[list[float]], reduction: str) -> float:
    total = 0.0
    for row, of_row in zip(logits.double().tolist(), shares, strict=True):
        for logit, share in zip(row, of_row, strict=True):
            chance = 1 / (1 + math.exp(-logit))
            total -= share * math.log(chance) + (1 - share) * math.log(1 - chance)
    return total / N / (CLASSES if reduction == "mean" else 1)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("smoothing", "threshold"), [(0.0, None), (0.1, None), (0.1, 0.2), (0.3, 0.5), (0.0, 0.0)]
)
def test_of_classes(
    logits: Tensor, classes: Tensor, reduction: str, smoothing: float, threshold: float | None
) -> None:
    options = BinaryCrossEntropy(reduction=reduction, target_threshold=threshold)  # type: ignore[arg-type]
    logits.requires_grad_()
    ours = loss_of(options, logits, classes, smoothing)
    (our_gradient,) = torch.autograd.grad(ours, logits)
    timms = Timms(smoothing, threshold, sum_classes=reduction == "sum")(logits, classes)
    (timms_gradient,) = torch.autograd.grad(timms, logits)
    torch.testing.assert_close(ours, timms)
    torch.testing.assert_close(our_gradient, timms_gradient)
    on, off = 1 - smoothing + smoothing / CLASSES, smoothing / CLASSES
    if threshold is not None:
        on, off = float(on > threshold), float(off > threshold)
    shares = [[on if c == k else off for k in range(CLASSES)] for c in classes.tolist()]
    assert ours.item() == pytest.approx(by_hand(logits, shares, reduction), rel=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("lam", [0.5, 0.85])
@pytest.mark.parametrize(
    ("smoothing", "threshold"), [(0.0, None), (0.1, None), (0.1, 0.2), (0.2, 0.7)]
)
def test_of_mixed_shares(
    logits: Tensor,
    classes: Tensor,
    reduction: str,
    lam: float,
    smoothing: float,
    threshold: float | None,
) -> None:
    """timm smooths each class's target and mixes them; ours are mixed, then smoothed."""
    options = BinaryCrossEntropy(reduction=reduction, target_threshold=threshold)  # type: ignore[arg-type]
    ours = loss_of(options, logits, mixup_target(classes, CLASSES, lam), smoothing)
    mixed = mixup_target(classes, CLASSES, lam, smoothing)
    timms = Timms(0.0, threshold, sum_classes=reduction == "sum")(logits, mixed)
    torch.testing.assert_close(ours, timms)
    if threshold is None:
        hand = by_hand(logits, mixed.double().tolist(), reduction)
        assert ours.item() == pytest.approx(hand, rel=1e-5)


@pytest.mark.parametrize(
    ("threshold", "smoothing", "num_classes", "message"),
    [
        (None, 0.9, 2, ""),
        (0.2, 0.1, None, ""),
        (0.2, 0.1, 1000, ""),
        (0.9, 0.1, 10, ""),
        (0.91, 0.1, None, ""),
        (0.91, 0.1, 1000, "makes every target 0: the largest of label smoothing 0.1 over 1,000 classes is 0.9001; choose a lower one"),
        (0.95, 0.1, None, "makes every target 0: the largest of label smoothing 0.1 is at most 0.95; choose a lower one"),
        (0.0, 0.1, None, ""),
        (0.0, 0.1, 10, "makes every target 1: the smallest of label smoothing 0.1 over 10 classes is 0.01; choose a higher one"),
        (0.0, 0.0, 10, ""),
    ],
)  # fmt: skip
def test_a_threshold_that_leaves_nothing_to_learn(
    threshold: float | None, smoothing: float, num_classes: int | None, message: str
) -> None:
    options = BinaryCrossEntropy(target_threshold=threshold)
    if not message:
        options.check(smoothing, num_classes)
        return
    with pytest.raises(UserError) as caught:
        options.check(smoothing, num_classes)
    assert str(caught.value) == f"loss.target_threshold: {threshold:g} {message}"
    if num_classes:  # and it is true
        targets = torch.full((num_classes,), smoothing / num_classes)
        targets[0] += 1 - smoothing
        assert threshold is not None
        assert len((targets > threshold).unique()) == 1
