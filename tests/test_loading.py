"""The loader for everybody: whose batches they are, where an iteration goes on, who is which rank."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torchvision.transforms import functional

import ffcv_r50
from ffcv_r50.data import loader as engine
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import UserError
from ffcv_r50.loading import EvalLoader, Labelled, TrainLoader
from tests.data.conftest import encode, make_image, write_beton

SAMPLES, BATCH = 50, 8
STEPS = SAMPLES // BATCH


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    images = [encode(make_image(48, 40 + i, i), interval=1) for i in range(SAMPLES)]
    return write_beton(tmp_path_factory.mktemp("loading") / "small.beton", images)


def train(dataset: Beton, **changes: Any) -> TrainLoader:
    settings: dict[str, Any] = {"batch_size": BATCH, "resolution": 16, "num_workers": 1, **changes}
    return TrainLoader(dataset, **settings)


def take(batches: Iterator[Labelled], count: int) -> list[Labelled]:
    return [next(batches) for _ in range(count)]


def same(one: list[Labelled], other: list[Labelled]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


# ------------------------------------------------------------------------------- what is in a batch


def test_the_package_alone_imports_neither_torch_nor_numba() -> None:
    code = "import ffcv_r50, sys; print(sorted({'torch', 'numba', 'numpy'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert ffcv_r50.TrainLoader is TrainLoader
    assert ffcv_r50.Dataset is Beton
    with pytest.raises(AttributeError, match="no attribute 'Loader'"):
        ffcv_r50.Loader  # noqa: B018


def test_batches_are_the_trainers_and_stay(dataset: Beton) -> None:
    """An epoch kept in a list is what the trainer's loader shows batch by batch."""
    kept = list(train(dataset, seed=5))
    assert len(kept) == len(train(dataset)) == STEPS
    theirs = engine.TrainLoader(dataset, seed=5, batch_size=BATCH, micro_batch_size=BATCH)
    with theirs.epoch(0, 16) as epoch:
        for (images, labels), batch in zip(kept, epoch, strict=True):
            assert images.shape == (BATCH, 16, 16, 3)
            assert torch.equal(images, batch.images)
            assert torch.equal(labels, batch.labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_are_normalised_in_float32_and_channels_last(
    dataset: Beton, dtype: torch.dtype
) -> None:
    (raw, _), (images, _) = next(iter(train(dataset))), next(iter(train(dataset, dtype=dtype)))
    assert images.shape == (BATCH, 3, 16, 16)
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = functional.normalize(
        raw.permute(0, 3, 1, 2) / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    assert images.dtype == dtype
    torch.testing.assert_close(images, expected.to(dtype), rtol=1e-2, atol=1e-4)


def test_other_images_have_another_mean_and_deviation(dataset: Beton) -> None:
    statistics: dict[str, Any] = {"mean": [0.3, 0.5, 0.625], "std": (0.25, 0.125, 1)}
    evaluated = {
        dtype: EvalLoader(dataset, resolution=16, num_workers=1, dtype=dtype, **statistics)
        for dtype in (torch.uint8, torch.float32)
    }
    trained = {dtype: train(dataset, dtype=dtype, **statistics) for dtype in evaluated}
    for shown in (evaluated, trained):
        raw, images = (next(iter(shown[dtype]))[0] for dtype in (torch.uint8, torch.float32))
        pixels = raw.permute(0, 3, 1, 2) / 255
        expected = functional.normalize(pixels, statistics["mean"], statistics["std"])
        torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)


def test_evaluation_shows_each_sample_once(dataset: Beton) -> None:
    whole = [
        label for _, labels in EvalLoader(dataset, resolution=16, num_workers=1) for label in labels
    ]
    assert whole == [i % 3 for i in range(SAMPLES)]
    shards = [
        EvalLoader(dataset, batch_size=4, resolution=16, num_workers=1, rank=rank, world_size=3)
        for rank in range(3)
    ]
    assert [label for shard in shards for _, labels in shard for label in labels] == whole
    assert [len(list(shard)) for shard in shards] == [len(shard) for shard in shards]
    assert same(list(shards[0]), list(shards[0]))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_device_is_given_the_same(dataset: Beton, dtype: torch.dtype) -> None:
    here, there = train(dataset, dtype=dtype), train(dataset, dtype=dtype, device="cuda")
    moved = [(images.cpu(), labels.cpu()) for images, labels in list(there)]
    assert same(list(here), moved) or dtype != torch.uint8
    for (a, _), (b, _) in zip(train(dataset, dtype=dtype), moved, strict=True):
        torch.testing.assert_close(a, b)


# ---------------------------------------------------------------------------------- epochs, and going on


def test_each_iteration_is_another_epoch(dataset: Beton) -> None:
    by_itself = train(dataset)
    epochs = [list(by_itself) for _ in range(3)]
    take(iter(by_itself), 2)  # left early: epoch 3
    epochs.append(list(by_itself))  # epoch 4
    for number, batches in zip((0, 1, 2, 4), epochs, strict=True):
        chosen = train(dataset)
        chosen.set_epoch(number)
        assert same(list(chosen), batches)
    assert not same(epochs[0], epochs[1])


def test_the_resolution_follows_the_epoch(dataset: Beton) -> None:
    growing = train(dataset, resolution=lambda epoch: 16 + 8 * epoch)
    assert [next(iter(growing))[0].shape[1] for _ in range(3)] == [16, 24, 32]
    growing.resolution = 40
    assert next(iter(growing))[0].shape[1] == 40


@pytest.mark.parametrize("done", [0, 1, STEPS - 1, STEPS])
@pytest.mark.parametrize("chooses_epoch", [False, True])
def test_a_state_goes_on_after_the_batch_given_last(
    dataset: Beton, done: int, chooses_epoch: bool
) -> None:
    running = train(dataset)
    list(running)
    epoch = iter(running)
    take(epoch, done)
    state = running.state_dict()
    rest, following = list(epoch), list(running)

    resumed = train(dataset)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state  # nothing was given meanwhile
    if chooses_epoch:
        resumed.set_epoch(state["epoch"])
    assert len(rest) == STEPS - done
    assert same(list(resumed), rest)
    assert same(list(resumed), following)


def test_a_state_after_the_epoch_begins_the_next(dataset: Beton) -> None:
    running = train(dataset)
    list(running)
    resumed = train(dataset)
    resumed.load_state_dict(running.state_dict())
    assert same(list(resumed), list(running))


def test_a_loaded_state_yields_to_another_epoch(dataset: Beton) -> None:
    running, resumed, fresh = train(dataset), train(dataset), train(dataset)
    take(iter(running), 2)
    resumed.load_state_dict(running.state_dict())
    resumed.set_epoch(4)
    fresh.set_epoch(4)
    assert same(list(resumed), list(fresh))


def test_a_state_goes_on_at_another_world_size(dataset: Beton) -> None:
    """After whole steps: what two processes make of the rest is what one made of it, step by step."""
    alone = train(dataset)
    epoch = iter(alone)
    take(epoch, 3)
    state = alone.state_dict()
    rest = list(epoch)

    ranks = [train(dataset, rank=r, world_size=2, micro_batch_size=2) for r in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
    pieces = [list(rank) for rank in ranks]
    assert [len(piece) for piece in pieces] == [2 * len(rest)] * 2
    for step, (images, labels) in enumerate(rest):
        parts = [batch for piece in pieces for batch in piece[2 * step : 2 * step + 2]]
        assert torch.equal(torch.cat([part for part, _ in parts]), images)
        assert torch.equal(torch.cat([part for _, part in parts]), labels)


def test_a_state_in_the_middle_of_a_step_is_for_the_same_processes(dataset: Beton) -> None:
    running = train(dataset, micro_batch_size=2)
    epoch = iter(running)
    take(epoch, 5)
    state = running.state_dict()
    resumed = train(dataset, micro_batch_size=2)
    resumed.load_state_dict(state)
    assert same(list(resumed), list(epoch))
    with pytest.raises(
        UserError, match="in the middle of a step with micro_batch_size 2, this loader has 8"
    ):
        train(dataset).load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "saved with seed 1, this loader has 0"),
        ({"batch_size": 16}, "saved with batch_size 16, this loader has 8"),
        ({"order": "quasi_random"}, "saved with order quasi_random, this loader has random"),
        ({"step": 99}, "epoch 0 has no step 99"),
        ({"step": None}, "not the state of a TrainLoader"),
    ],
)
def test_states_of_others_are_refused(dataset: Beton, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(dataset).load_state_dict({**train(dataset).state_dict(), **change})
    with pytest.raises(UserError, match="not the state of a TrainLoader"):
        train(dataset).load_state_dict({})


def test_a_second_iteration_ends_the_first(dataset: Beton) -> None:
    shown = train(dataset)
    first = iter(shown)
    next(first)
    second = iter(shown)
    with pytest.raises(RuntimeError, match="this epoch was closed"):
        next(first)
    assert len(list(second)) == STEPS


# ------------------------------------------------------------------------------ ranks, and what is refused


def test_ranks_come_from_the_group_else_the_environment(
    dataset: Beton, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in (("RANK", 1), ("WORLD_SIZE", 2), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert (train(dataset).rank, EvalLoader(dataset).world_size) == (1, 2)
    assert next(iter(train(dataset)))[0].shape[0] == BATCH // 2
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        assert (train(dataset).rank, train(dataset).world_size) == (0, 1)
    finally:
        dist.destroy_process_group()
    assert (train(dataset, rank=3, world_size=4).rank) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"device": "meta"}, "choose the CPU or a CUDA device"),
        ({"dtype": torch.int64}, "dtype is torch.int64; choose one of torch.uint8"),
        (
            {"mean": (123.7, 116.3, 103.5)},
            r"mean is \(123.7, .*\); give those of red, green and blue",
        ),
        ({"mean": 0.5}, "mean is 0.5; give those of red, green and blue, each from 0 to 1"),
        ({"std": (0.2, 0.2, 0)}, "each above 0, up to 1"),
        ({"rank": 1}, "both rank and world_size"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not one of 2 ranks"),
        (
            {"rank": 0, "world_size": 3},
            "batch_size is 8, over all processes; choose a multiple of 3",
        ),
        ({"micro_batch_size": 3}, "cannot be cut into micro-batches of 3"),
        ({"batch_size": 64}, "fewer than one batch of 64"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_that_make_no_sense(
    dataset: Beton, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(dataset, **settings)
