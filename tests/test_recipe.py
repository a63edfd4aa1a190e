"""Recipes over time: learning rate and resolution, shared steps, the printed table, operations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ffcv_r50 import recipe
from ffcv_r50.config import settings
from ffcv_r50.config.settings import Config
from ffcv_r50.errors import UserError
from ffcv_r50.keyframes import Keyframes

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 7  # an odd number: no step falls on a round fraction of an epoch


def load(name: str, *argv: str) -> Config:
    return settings.load([f"--config={REPOSITORY}/rcp/{name}.yaml", *argv], needs_data=False)


# --------------------------------------------------------------------------- what holds when


def published_lr(epoch: float, peak: float, epochs: int) -> float:
    """The cyclic schedule of ffcv-imagenet at a whole epoch."""
    return float(np.interp([epoch], [0, 2, epochs], [1e-4 * peak, peak, 0])[0])


def learning_rate(config: Config, epoch: int, step: int, steps: int) -> float:
    return recipe.step(config, epoch, step, steps).values["lr"]


def published_resolution(epoch: int, ramp: tuple[int, int]) -> int:
    interpolated = np.interp([epoch], ramp, [160, 192])[0]
    return int(np.round(interpolated / 32)) * 32


@pytest.mark.parametrize(("arch", "peak"), [("rn50", 1.7), ("rn18", 0.5)])
@pytest.mark.parametrize(
    ("epochs", "ramp"),
    [
        (16, (11, 13)),
        (24, (17, 20)),
        (32, (23, 27)),
        (40, (29, 34)),
        (56, (41, 48)),
        (88, (65, 76)),
    ],
)
def test_the_published_schedule_at_every_step(
    arch: str, peak: float, epochs: int, ramp: tuple[int, int]
) -> None:
    loaded = load(f"{arch}_{epochs}ep")
    for epoch in range(epochs):
        # Theirs interpolates between whole epochs, step by step.
        ends = [published_lr(epoch, peak, epochs), published_lr(epoch + 1, peak, epochs)]
        expected = np.interp(np.arange(STEPS), [0, STEPS], ends)
        ours = [learning_rate(loaded, epoch, step, STEPS) for step in range(STEPS)]
        np.testing.assert_allclose(ours, expected, rtol=1e-12)
        assert recipe.resolution(loaded, epoch) == published_resolution(epoch, ramp)


def test_resolutions_round_to_the_nearest_multiple_and_halves_as_published() -> None:
    loaded = load("rn50_16ep", "--schedule.resolution={0: 128, 14: 224, 16: 224}")
    raw = np.interp(np.arange(16), [0, 14], [128, 224])
    expected = [int(np.round(side / 32)) * 32 for side in raw]
    assert [recipe.resolution(loaded, epoch) for epoch in range(16)] == expected
    # 144 lies halfway between 128 and 160, 176 between 160 and 192: both go to an even multiple.
    for ends, half in (((128, 160), 128), ((160, 192), 192)):
        assert settings.resolution_at(Keyframes({0: ends[0], 2: ends[1]}), 1) == half
    # What a keyframe says is meant: torchvision trains at 176.
    flat = Keyframes({0: 88, 2: 88, 4: 176})
    assert [settings.resolution_at(flat, epoch) for epoch in range(6)] == [
        88,
        88,
        88,
        128,
        176,
        176,
    ]


def lr_by_torch(schedule: type, steps: int, **options: object) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.7)
    scheduler = schedule(optimizer, **options)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_is_torchs_cosine() -> None:
    loaded = load("rn50_16ep", "--schedule.lr={0: 1.7, 16: 0.1, interpolation: cosine}")
    ours = [learning_rate(loaded, i // STEPS, i % STEPS, STEPS) for i in range(16 * STEPS)]
    theirs = lr_by_torch(
        torch.optim.lr_scheduler.CosineAnnealingLR, 16 * STEPS, T_max=16 * STEPS, eta_min=0.1
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_step_is_torchs_step() -> None:
    rows = "{0: 1.7, 5: 0.17, 10: 0.017, 15: 0.0017, interpolation: step}"
    loaded = load("rn50_16ep", f"--schedule.lr={rows}")
    ours = [learning_rate(loaded, i // STEPS, i % STEPS, STEPS) for i in range(16 * STEPS)]
    theirs = lr_by_torch(torch.optim.lr_scheduler.StepLR, 16 * STEPS, step_size=5 * STEPS)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_keyframes_hold_their_ends_and_may_lie_within_an_epoch() -> None:
    frames = Keyframes({0: 2.0, 0.5: 4.0, 3: 0.0})
    assert [frames.at(epoch) for epoch in (-1, 0, 0.25, 0.5, 3, 9)] == [2, 2, 3, 4, 0, 0]
    assert frames.scaled(0.5).at(0.25) == 1.5
    assert frames == Keyframes([(0, 2), (0.5, 4), (3, 0)])


def test_a_row_of_the_schedule_wins_over_the_constant() -> None:
    constant = load("rn50_16ep")
    assert recipe.values(constant, 1.5) == {
        "lr": constant.schedule.lr.at(1.5),
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "label_smoothing": 0.1,
    }
    changing = load(
        "rn50_16ep",
        "--schedule.momentum={0: 0.95, 2: 0.85}",
        "--schedule.weight_decay={0: 0, 16: step 5e-5}",
        "--schedule.label_smoothing={0: 0.2, 16: power 2 0}",
    )
    for epoch in range(16):
        for step in range(STEPS):
            at = epoch + step / STEPS
            found = recipe.values(changing, at)
            assert found["lr"] == changing.schedule.lr.at(at)
            assert found["momentum"] == pytest.approx(max(0.95 - 0.05 * at, 0.85), rel=1e-12)
            assert found["weight_decay"] == 0
            expected = 0.2 * (1 - at / 16) ** 2
            assert found["label_smoothing"] == pytest.approx(expected, rel=1e-12)


def test_one_more_row_is_one_more_field() -> None:
    class Constants(settings.Training):
        dropout: settings.Share = 0.5

    class Rows(settings.Schedule):
        dropout: Keyframes | None = None

    known = load("rn50_16ep")
    training = Constants(**dict(known.training))
    rows = dict(known.schedule)
    for row, expected in ((None, 0.5), (Keyframes({0: 0.1, 16: 0.3}), 0.2)):
        more = {"training": training, "schedule": Rows(**rows, dropout=row)}
        found = recipe.values(Config(**dict(known) | more), 8.0)
        assert found["dropout"] == pytest.approx(expected)
    more = {"training": training, "schedule": Rows(**rows, dropout=Keyframes({0: 2}))}
    with pytest.raises(
        UserError, match=r"^schedule.dropout: expected a number above 0 and at most 1"
    ):
        Config(**dict(known) | more)


def test_pairs_that_are_mixed_need_an_even_micro_batch() -> None:
    batches = ("--training.batch_size=54", "--training.norm_batch_size=18")
    mixed = load("rn50_16ep", "--augment=[{mix: {mixup: 0.2}}]", *batches)
    assert recipe.plan(mixed, 3).micro_batch_size == 18
    with pytest.raises(UserError) as raised:
        recipe.plan(mixed, 6)
    assert str(raised.value) == (
        "augment: mix needs micro-batches of a multiple of 2 images, on 6 processes they have 9; "
        "choose another number of processes or --training.norm_batch_size"
    )


def test_averages_are_evaluated_every_few_epochs_and_after_the_last() -> None:
    every = {n: load("rn50_16ep", f"--validation.averages_every={n}") for n in (1, 5, 16, 99)}
    done = {
        n: [e + 1 for e in range(16) if recipe.evaluates_averages(config, e)]
        for n, config in every.items()
    }
    assert done == {1: list(range(1, 17)), 5: [5, 10, 15, 16], 16: [16], 99: [16]}


# --------------------------------------------------------------------------------- who does what


@pytest.mark.parametrize(("world_size", "micro_batches"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_a_step_is_shared_in_normalisation_batches(world_size: int, micro_batches: int) -> None:
    assert recipe.plan(load("rn50_16ep"), world_size) == (512, micro_batches, 1)


@pytest.mark.parametrize(("world_size", "images"), [(16, 256), (64, 64), (4096, 1)])
def test_more_processes_share_normalisation_batches(world_size: int, images: int) -> None:
    assert recipe.plan(load("rn50_16ep"), world_size) == (images, 1, 512 // images)
    assert world_size * images == 4096


@pytest.mark.parametrize(
    ("world_size", "near"), [(3, "2 or 4"), (12, "8 or 16"), (24, "16 or 32"), (8192, "4096")]
)
def test_a_step_that_cannot_be_shared(world_size: int, near: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe.plan(load("rn50_16ep"), world_size)
    assert str(caught.value) == (
        f"{world_size} processes for 8 normalisation batches a step (training.batch_size 4096 / "
        f"training.norm_batch_size 512): they do not divide evenly; start {near} processes, or pass "
        "another --training.norm_batch_size (the run then departs from its recipe)"
    )


def test_one_normalisation_batch() -> None:
    assert recipe.plan(load("rn18_16ep"), 1) == (1024, 1, 1)
    assert recipe.plan(load("rn18_16ep"), 2) == (512, 1, 2)
