"""Keyframes: each kind of segment is torch's own scheduler at every step; what is written reads back."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from ffcv_r50.keyframes import Keyframes

EPOCHS, STEPS = 30, 7  # an odd number: no step falls on a round fraction of an epoch
TOTAL = EPOCHS * STEPS


def by_torch(
    schedule: Callable[[torch.optim.Optimizer], LRScheduler],
    lr: float = 1.7,
    value: Callable[[torch.optim.Optimizer], float] = lambda sgd: sgd.param_groups[0]["lr"],
    steps: int = TOTAL,
) -> list[float]:
    """What a scheduler of torch sets for each step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    scheduler = schedule(optimizer)
    found = []
    for _ in range(steps):
        found.append(value(optimizer))
        optimizer.step()
        scheduler.step()
    return found


def ours(frames: Keyframes, steps: int = TOTAL) -> list[float]:
    return [frames.at(step // STEPS + step % STEPS / STEPS) for step in range(steps)]


def test_a_line_and_then_a_cosine() -> None:
    """What torchvision and timm train with: 5 epochs of warm-up, then half a cosine to 0."""
    warm = 5 * STEPS

    def schedule(optimizer: torch.optim.Optimizer) -> LRScheduler:
        line = lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=warm)
        cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=TOTAL - warm)
        return lr_scheduler.SequentialLR(optimizer, [line, cosine], [warm])

    theirs = by_torch(schedule, lr=0.5)
    frames = Keyframes({0: 0.005, 5: 0.5, EPOCHS: "cosine 0"})
    np.testing.assert_allclose(ours(frames), theirs, rtol=1e-9, atol=1e-12)


def test_cosine_as_the_rows_default_and_as_a_segments_kind() -> None:
    theirs = by_torch(lambda sgd: lr_scheduler.CosineAnnealingLR(sgd, T_max=TOTAL, eta_min=0.1))
    for frames in (Keyframes({0: 1.7, EPOCHS: 0.1}, "cosine"), Keyframes({0: 1.7, EPOCHS: "cosine 0.1"})):  # fmt: skip
        np.testing.assert_allclose(ours(frames), theirs, rtol=1e-9)


@pytest.mark.parametrize("power", [0.5, 1, 2, 3])
def test_power_is_torchs_polynomial(power: float) -> None:
    theirs = by_torch(lambda sgd: lr_scheduler.PolynomialLR(sgd, total_iters=TOTAL, power=power))
    frames = Keyframes({0: 1.7, EPOCHS: f"power {power} 0"})
    np.testing.assert_allclose(ours(frames), theirs, rtol=1e-9, atol=1e-12)


def test_power_ends_elsewhere_than_at_0() -> None:
    frames = Keyframes({0: 1.0, 10: "power 2 0.2"})
    assert [frames.at(epoch) for epoch in (0, 5, 10, 11)] == [1.0, 0.2 + 0.8 * 0.25, 0.2, 0.2]


def test_exponential_is_torchs() -> None:
    gamma = 0.99
    theirs = by_torch(lambda sgd: lr_scheduler.ExponentialLR(sgd, gamma))
    frames = Keyframes({0: 1.7, EPOCHS: f"exponential {1.7 * gamma**TOTAL!r}"})
    np.testing.assert_allclose(ours(frames), theirs, rtol=1e-9)


def test_step_is_torchs_step() -> None:
    theirs = by_torch(lambda sgd: lr_scheduler.StepLR(sgd, step_size=10 * STEPS))
    for frames in (
        Keyframes({0: 1.7, 10: 0.17, 20: 0.017}, "step"),
        Keyframes({0: 1.7, 10: "step 0.17", 20: "step 0.017"}),
    ):
        np.testing.assert_allclose(ours(frames), theirs, rtol=1e-9)


def test_rows_of_rate_and_momentum_are_torchs_one_cycle() -> None:
    def schedule(optimizer: torch.optim.Optimizer) -> LRScheduler:
        return lr_scheduler.OneCycleLR(
            optimizer, max_lr=1.7, total_steps=TOTAL, pct_start=0.3, div_factor=25,
            final_div_factor=1e4, base_momentum=0.85, max_momentum=0.95,
        )  # fmt: skip

    # Its phases end at steps 0.3 * TOTAL - 1 and TOTAL - 1.
    peak, end = (0.3 * TOTAL - 1) / STEPS, (TOTAL - 1) / STEPS
    lr = Keyframes({0: 1.7 / 25, peak: "cosine 1.7", end: f"cosine {1.7 / 25 / 1e4!r}"})
    momentum = Keyframes({0: 0.95, peak: "cosine 0.85", end: "cosine 0.95"})
    # The last step is torch's TOTAL-th: it raises at the one after.
    steps = TOTAL - 1
    np.testing.assert_allclose(
        ours(lr, steps), by_torch(schedule, steps=steps), rtol=1e-9, atol=1e-12
    )
    theirs = by_torch(schedule, value=lambda sgd: sgd.param_groups[0]["momentum"], steps=steps)
    np.testing.assert_allclose(ours(momentum, steps), theirs, rtol=1e-9)


def test_kinds_in_one_row() -> None:
    frames = Keyframes(
        {0: 1, 1: 2, 2: "cosine 4", 3: "step 8", 4: "exponential 2", 5: "power 2 0"}, "linear"
    )
    halves = [frames.at(epoch + 0.5) for epoch in range(6)]
    assert halves == [1.5, 3.0, 4.0, pytest.approx(4.0), 0.5, 0.0]
    assert [frames.at(epoch) for epoch in range(6)] == [1, 2, 4, 8, 2, 0]
    for epoch, (low, high) in enumerate(itertools.pairwise(frames.values)):
        inside = [frames.at(epoch + part / 100) for part in range(100)]
        assert min(low, high) <= min(inside) <= max(inside) <= max(low, high)


def test_the_old_forms_have_the_bits_of_before() -> None:
    """Recorded from the version whose rows had one interpolation each."""
    table = {0: 0.1, 3: 1.7, 7.5: 0.013}
    recorded = {
        "linear": ("0x1.4444444444444p+0", "0x1.002e9a76f74eap-1"),
        "cosine": ("0x1.6d6f1c207cc6bp+0", "0x1.5948375afb3f8p-2"),
        "step": ("0x1.999999999999ap-4", "0x1.b333333333333p+0"),
    }
    assert {
        kind: tuple(Keyframes(table, kind).at(epoch).hex() for epoch in (2.1875, 6.2))
        for kind in recorded
    } == recorded


# ---------------------------------------------------------------------------- written and equal


@pytest.mark.parametrize(
    ("frames", "table"),
    [
        (Keyframes({0: 0, 2: 1.7, 88: 0}), {0: 0, 2: 1.7, 88: 0}),
        (Keyframes({0: 1, 8: 0}, "cosine"), {0: 1, 8: 0, "interpolation": "cosine"}),
        (Keyframes({0: 0.005, 5: 0.5, 600: "cosine 0"}), {0: 0.005, 5: 0.5, 600: "cosine 0"}),
        (
            Keyframes({0: 1, 0.5: "linear 2", 3: "power 2.0 1e-7", 4: 0}, "step"),
            {0: 1, 0.5: "linear 2", 3: "power 2 1e-07", 4: 0, "interpolation": "step"},
        ),
        (
            Keyframes({0: 1, 8: "power 0.5 0"}, "power 2"),
            {0: 1, 8: "power 0.5 0", "interpolation": "power 2"},
        ),
    ],
)
def test_what_is_written_reads_back_equal(
    frames: Keyframes, table: dict[str | float, str | float]
) -> None:
    assert frames.to_yaml() == table
    again = Keyframes.from_pairs([(f"{key}", f"{value}") for key, value in table.items()])
    assert again == frames
    assert hash(again) == hash(frames)
    assert again.to_yaml() == table


def test_a_kind_that_is_the_rows_anyway_is_no_difference() -> None:
    assert Keyframes({0: 1, 8: "linear 0"}) == Keyframes({0: 1, 8: 0})
    assert Keyframes({0: 1, 8: "power 2.0 0"}) == Keyframes({0: 1, 8: "power  2 0"})
    assert Keyframes({0: 1, 8: "cosine 0"}) != Keyframes({0: 1, 8: 0})


def test_scaling_keeps_the_kinds() -> None:
    frames = Keyframes({0: 1, 4: "exponential 2", 8: "power 2 0"}, "cosine").scaled(0.25)
    assert frames == Keyframes({0: 0.25, 4: "exponential 0.5", 8: "power 2 0"}, "cosine")


# ----------------------------------------------------------------------------------- what it says

KINDS = "linear or cosine or step or exponential or power N"
FORMS = f"expected epoch: value, epoch: KIND value or interpolation: KIND, where KIND is {KINDS}"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"0": "hot"}, f"'0: hot' is not a keyframe; {FORMS}"),
        ({"0": ""}, f"'0: ' is not a keyframe; {FORMS}"),
        ({"0:32": ""}, "'0:32' is not a keyframe; YAML needs a space after each colon"),
        ({"0": "1", "8": "cosine"}, f"'8: cosine' is not a keyframe; {FORMS}"),
        ({"0": "1", "8": "cosine nan"}, f"'8: cosine nan' is not a keyframe; {FORMS}"),
        ({"0": "1", "8": "cosine 1e999"}, f"'8: cosine 1e999' is not a keyframe; {FORMS}"),
        ({"0": "1", "interpolatin": "step"}, f"'interpolatin: step' is not a keyframe; {FORMS}"),
        ({"0": "1", "8": "cosin 0"}, f"'8: cosin 0': expected {KINDS}, got 'cosin'; did you mean cosine?"),
        ({"0": "1", "8": "step 2 0"}, f"'8: step 2 0': expected {KINDS}, got 'step 2'; did you mean step?"),
        ({"0": "1", "8": "power 0"}, f"'8: power 0': expected {KINDS}, got 'power'; did you mean power N?"),
        ({"0": "1", "8": "power 0 0"}, "'8: power 0 0': expected a power above 0, got 'power 0'"),
        ({"0": "1", "8": "power x 0"}, "'8: power x 0': expected a number, got 'x'"),
        ({"0": "1", "interpolation": "cubic"}, f"interpolation: expected {KINDS}, got 'cubic'"),
        ({"0": "cosine 1", "8": "0"}, "'0: cosine 1': before the first keyframe there is none to come from; write 0: 1"),
        ({"0": "1", "8": "exponential 0"}, "exponential from 1 at epoch 0 to 0 at epoch 8: both must be above 0"),
        ({"0": "-1", "8": "exponential -2"}, "exponential from -1 at epoch 0 to -2 at epoch 8: both must be above 0"),
        ({"0": "0", "8": "1", "interpolation": "exponential"}, "exponential from 0 at epoch 0 to 1 at epoch 8: both must be above 0"),
    ],
)  # fmt: skip
def test_errors(table: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Keyframes.from_pairs(list(table.items()))
    assert str(caught.value) == message
