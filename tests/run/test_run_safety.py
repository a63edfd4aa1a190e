"""Runs continue as if nothing had happened: after kills, on other world sizes, with full disks."""

import functools
import itertools
import math
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ffcv_r50.data.beton import Beton
from ffcv_r50.data.loader import TrainLoader
from ffcv_r50.errors import BAD_INPUT, FAULT, FINISHED, STOPPED_AS_ASKED
from ffcv_r50.logs import jsonl
from ffcv_r50.run import checkpoint
from ffcv_r50.run.status import read_status
from ffcv_r50.trainer import TakeStep
from ffcv_r50.training import precision
from ffcv_r50.training.metrics import NotFinite, StepMetrics
from ffcv_r50.training.protocols import Batch, Step
from ffcv_r50.training.step import TrainStep
from tests import ranks
from tests.conftest import Dataset


@pytest.fixture(scope="module")
def undisturbed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = ranks.run(ranks.arguments(dataset, folder), folder, ranks=1)
    assert ended.codes == [FINISHED], ended.outputs
    return folder


# ------------------------------------------------------------------------------ kills and world sizes


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch(
    undisturbed: Path, dataset: Dataset, tmp_path: Path
) -> None:
    arguments = ranks.arguments(dataset, tmp_path)
    killed = ranks.run(arguments, tmp_path, ranks=1, hook=ranks.at_step(6, signal.SIGKILL))
    assert killed.codes == [-signal.SIGKILL]
    assert ranks.status(tmp_path)["state"] == "running"
    assert read_status(tmp_path)["state"] == "lost"
    notes = tmp_path / "notes"
    notes.mkdir()
    continued = ranks.run(arguments, tmp_path, ranks=1, hook=ranks.noting(notes))
    assert continued.codes == [FINISHED], continued.outputs
    # A state after every step; that of step 5, or the one before it, was the last to be whole.
    assert min(ranks.noted(notes)) in (4, 5, 6)
    ranks.assert_same_weights(undisturbed, tmp_path)
    assert ranks.log(undisturbed) == ranks.log(tmp_path)


WORLDS = (
    "--training.batch_size=24",
    "--training.norm_batch_size=4",
    "--schedule.lr={0: 0.001, 3: 0.0}",
)


@pytest.mark.slow
def test_the_world_size_changes_twice_in_the_middle(dataset: Dataset, tmp_path: Path) -> None:
    """2 -> 1 -> 3 processes, each change in the middle of an epoch, against 2 throughout.

    What a step sees is the same to the bit: pixels and labels of each normalisation batch, in the
    order of the global batch, so samples, crops and flips are. The losses are not: a sum of six
    gradients in another order rounds differently, by at most 5 x 2^-24 (3e-7) of itself a step,
    and batch-norm over four images of few pixels amplifies that from step to step; the learning
    rate is small to keep six steps of it below what one exchanged sample does (1e-4). 2e-6 is
    thirty times what was measured (6e-8).
    """
    runs = {}
    for name, worlds in (("steady", [(2, None)]), ("changing", [(2, 0), (1, 2), (3, None)])):
        folder, notes = tmp_path / name, tmp_path / f"{name}-notes"
        notes.mkdir()
        arguments = ranks.arguments(
            dataset,
            folder,
            *WORLDS,
            "--schedule.resolution={0: 64}",
            "--checkpoint.every=9 minutes",
        )
        for world_size, stop in worlds:
            more = None if stop is None else ranks.at_step(stop, signal.SIGTERM, rank=0)
            ended = ranks.run(arguments, tmp_path, ranks=world_size, hook=ranks.noting(notes, more))
            code = FINISHED if stop is None else STOPPED_AS_ASKED
            assert ended.codes == [code] * world_size, ended.outputs
        runs[name] = ranks.noted(notes), ranks.log(folder)
    assert runs["steady"][0] == runs["changing"][0]
    assert [len(parts) for parts in runs["steady"][0].values()] == [6] * 6
    for key in ("train_loss", "val_loss"):
        steady, changing = ([row[key] for row in runs[name][1]] for name in runs)
        assert changing == pytest.approx(steady, rel=2e-6)


@pytest.mark.parametrize("order", ["random", "quasi_random"])
def test_the_loader_gives_every_world_size_the_same_samples_from_any_step(
    dataset: Dataset, order: str
) -> None:
    """Also where there are more ranks than normalisation batches, which then are cut."""
    beton = Beton(dataset.train)

    def stream(world_size: int, micro_batch_size: int = 4) -> tuple[list[int], torch.Tensor]:
        loaders = [
            TrainLoader(
                beton,
                seed=3,
                batch_size=24,
                micro_batch_size=micro_batch_size,
                rank=rank,
                world_size=world_size,
                order=order,
            ).epoch(1, 32, first_step=1)
            for rank in range(world_size)
        ]
        # One step: the ranks' runs lie one after the other.
        parts = [
            (batch.indices.clone(), batch.images.clone()) for loader in loaders for batch in loader
        ]
        indices, images = zip(*parts, strict=True)
        return torch.cat(indices).tolist(), torch.cat(images)

    one = stream(1)
    assert len(one[0]) == 24
    for other in (stream(2), stream(3), stream(12, micro_batch_size=2)):
        assert other[0] == one[0]
        assert torch.equal(other[1], one[1])


# ------------------------------------------------------------------------------------ declared changes


@pytest.mark.slow
def test_a_finished_run_is_extended(undisturbed: Path, dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    arguments = ranks.arguments(
        dataset,
        tmp_path / "run",
        "--training.epochs=4",
        "--schedule.lr={0: 0.001, 1: 0.01, 3: 0.001, 4: 0.0}",
    )
    refused = ranks.run(arguments, tmp_path, ranks=1)
    assert refused.codes == [BAD_INPUT]
    assert "training.epochs (3 -> 4)" in refused.outputs[0]
    allow = "--resume.allow=training.epochs,schedule.lr"
    extended = ranks.run([*arguments, allow], tmp_path, ranks=1)
    assert extended.codes == [FINISHED], extended.outputs
    assert "note: training.epochs (3 -> 4), as resume.allow permits" in extended.outputs[0]
    rows = ranks.log(tmp_path / "run")
    assert rows[:3] == ranks.log(undisturbed)
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert rows[3]["lr"] == pytest.approx(0.001 / 4)  # the new schedule, one step before its end


@pytest.mark.slow
def test_the_batch_changes_in_the_middle_of_an_epoch(dataset: Dataset, tmp_path: Path) -> None:
    """From 16 to 8 images a step after two of epoch 1's four: the same samples follow, in eights."""
    fixed = ("--schedule.resolution={0: 32}", "--schedule.lr={0: 0.001}")
    notes = {name: tmp_path / name for name in ("sixteen", "eight")}
    for path in notes.values():
        path.mkdir()
    stopped = ranks.run(
        ranks.arguments(dataset, tmp_path / "run", *fixed),
        tmp_path,
        hook=ranks.noting(notes["sixteen"], ranks.at_step(4, signal.SIGTERM, rank=0)),
    )
    assert stopped.codes == [STOPPED_AS_ASKED] * 2, stopped.outputs
    ended = ranks.run(
        ranks.arguments(dataset, tmp_path / "whole", *fixed),
        tmp_path,
        hook=ranks.noting(notes["sixteen"]),
    )
    assert ended.codes == [FINISHED] * 2, ended.outputs
    sixteen = list(itertools.chain(*ranks.noted(notes["sixteen"]).values()))

    allow = "--resume.allow=training.batch_size,schedule.lr"
    smaller = ranks.arguments(dataset, tmp_path / "run", *fixed, "--training.batch_size=8", allow)
    continued = ranks.run(smaller, tmp_path, ranks=1, hook=ranks.noting(notes["eight"]))
    assert continued.codes == [FINISHED], continued.outputs
    eight = ranks.noted(notes["eight"])
    first = min(eight)
    assert first == 2 * (4 + 3), "the signal before step 4 was known after step 6"
    assert list(eight) == list(range(first, 24))
    assert [parts for [parts] in eight.values()] == sixteen[first:]
    # The mean loss of that epoch is over its images: three steps of sixteen count as six of eight.
    # Where they count as three it is lower by three eighths.
    changed, whole = (ranks.log(tmp_path / name)[1]["train_loss"] for name in ("run", "whole"))
    assert changed == pytest.approx(whole, rel=0.1)


@pytest.mark.slow
def test_a_new_folder_starts_from_a_named_state(
    undisturbed: Path, dataset: Dataset, tmp_path: Path
) -> None:
    source = undisturbed / "checkpoints" / checkpoint.PREVIOUS
    before = checkpoint.load(source)["progress"]
    arguments = ranks.arguments(dataset, tmp_path / "new", f"--resume={source}")
    started = ranks.run(arguments, tmp_path, ranks=1)
    assert started.codes == [FINISHED], started.outputs
    assert f"continuing after epoch {before['epoch']} of 3" in started.outputs[0]
    ranks.assert_same_weights(undisturbed, tmp_path / "new")
    other = ranks.arguments(
        dataset, tmp_path / "other", f"--resume={source}", "--training.momentum=0.8"
    )
    refused = ranks.run(other, tmp_path, ranks=1)
    assert refused.codes == [BAD_INPUT]
    assert "training.momentum (0.9 -> 0.8)" in refused.outputs[0]


@pytest.mark.slow
def test_starting_anew_in_the_same_folder(
    undisturbed: Path, dataset: Dataset, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    arguments = ranks.arguments(dataset, tmp_path / "run", "--resume=none", "--training.epochs=3")
    anew = ranks.run(arguments, tmp_path, ranks=1)
    assert anew.codes == [FINISHED], anew.outputs
    assert "continuing" not in anew.outputs[0]
    ranks.assert_same_weights(undisturbed, tmp_path / "run")
    [aside] = (tmp_path / "run").glob("before-*")
    assert (aside / "checkpoints" / checkpoint.LAST).exists()


@pytest.mark.slow
def test_a_finished_run_has_nothing_to_give_to_a_new_folder(
    undisturbed: Path, dataset: Dataset, tmp_path: Path
) -> None:
    source = undisturbed / "checkpoints" / checkpoint.LAST
    ended = ranks.run(
        ranks.arguments(dataset, tmp_path / "new", f"--resume={source}"), tmp_path, ranks=1
    )
    assert ended.codes == [BAD_INPUT]
    assert f"error: --resume={source}: all 3 epochs of that run are done" in ended.outputs[0]


@pytest.mark.slow
def test_a_refused_start_leaves_the_folder_as_it_was(
    undisturbed: Path, dataset: Dataset, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    arguments = ranks.arguments(dataset, tmp_path / "run")
    other = [word for word in arguments if "model.arch" not in word]
    refused = ranks.run(
        [*other, "--model.arch=timm/test_resnet", "--resume.allow=model.arch"], tmp_path, ranks=1
    )
    assert refused.codes == [BAD_INPUT], refused.outputs
    assert "the saved state does not fit this network" in refused.outputs[0]
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    assert ranks.run(arguments, tmp_path, ranks=1).codes == [FINISHED]


@pytest.mark.slow
def test_a_run_whose_states_are_gone_is_not_written_over(
    undisturbed: Path, dataset: Dataset, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    log = (tmp_path / "run" / "log.jsonl").read_bytes()
    anew = ranks.run(ranks.arguments(dataset, tmp_path / "run"), tmp_path, ranks=1)
    assert anew.codes == [FINISHED], anew.outputs
    [aside] = (tmp_path / "run").glob("before-*")
    assert f"its log is kept in {aside}" in anew.outputs[0]
    assert (aside / "log.jsonl").read_bytes() == log
    assert (aside / "weights.pt").exists()
    ranks.assert_same_run(undisturbed, tmp_path / "run")


# ------------------------------------------------------------------------------------------ full disks


def fail_the_first_writes() -> None:
    """The log and the checkpoints cannot be written while the first epoch ends."""
    append, write = jsonl.append, checkpoint.write
    failing = itertools.count()

    def failing_append(path: Path, row: dict[str, Any]) -> None:
        if next(failing) == 0:
            raise OSError(28, "No space left on device")
        append(path, row)

    saves = itertools.count()

    def failing_write(folder: Path, state: dict[str, Any], *, copies: Any = ()) -> None:
        if next(saves) < 5:
            raise OSError(28, "No space left on device")
        write(folder, state, copies=copies)

    jsonl.append = failing_append
    checkpoint.write = failing_write


@pytest.mark.slow
def test_training_goes_on_while_the_disk_is_full(
    undisturbed: Path, dataset: Dataset, tmp_path: Path
) -> None:
    arguments = ranks.arguments(dataset, tmp_path)
    ended = ranks.run(arguments, tmp_path, ranks=1, hook=fail_the_first_writes)
    assert ended.codes == [FINISHED], ended.outputs
    warning = "warning: {}: {} (No space left on device); make room there. Training goes on"
    assert warning.format(tmp_path / "log.jsonl", "cannot be written") in ended.outputs[0]
    folder = tmp_path / "checkpoints"
    assert warning.format(folder, "the checkpoint could not be written") in ended.outputs[0]
    assert ranks.log(tmp_path) == ranks.log(undisturbed)
    ranks.assert_same_weights(undisturbed, tmp_path)


# ------------------------------------------------------------------------------------------ not finite


def spoil(*steps: int) -> None:
    """These steps ruin the network and report a loss that is not a number."""

    def wrap(take: TakeStep, train_step: TrainStep) -> TakeStep:
        def spoilt(batches: Iterator[Batch], step: Step, stop: bool) -> torch.Tensor:
            values = take(batches, step, stop)
            if step.number in steps:
                values[0] = math.nan
                with torch.no_grad():
                    for parameter in train_step.network.parameters():
                        parameter.fill_(math.nan)
            return values

        return spoilt

    ranks.wrap_step(wrap)


@pytest.mark.slow
def test_a_rollback_skips_the_window(dataset: Dataset, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    ended = ranks.run(
        ranks.arguments(dataset, tmp_path, "--training.rollbacks=1"),
        tmp_path,
        hook=ranks.noting(notes, functools.partial(spoil, 5)),
    )
    assert ended.codes == [FINISHED] * 2, ended.outputs
    assert (
        "warning: the loss is nan in step 5: going back to the state before step 5 and skipping "
        in (ended.outputs[0])
    )
    assert "(rollback 1 of 1)" in ended.outputs[0]
    rows = ranks.log(tmp_path)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    # The mean is over the three steps that were trained; near ln 3 for three classes.
    assert 0.7 < rows[1]["train_loss"] < 1.5
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.slow
def test_rollbacks_are_counted(dataset: Dataset, tmp_path: Path) -> None:
    """Of two spoilt windows only one may be skipped; here the first is a whole epoch."""
    arguments = ranks.arguments(
        dataset, tmp_path, "--training.rollbacks=1", "--checkpoint.every=9 minutes"
    )
    ended = ranks.run(arguments, tmp_path, ranks=1, hook=functools.partial(spoil, 7, 10))
    assert ended.codes == [FAULT], ended.outputs
    assert "skipping steps 4 to 7 (rollback 1 of 1)" in ended.outputs[0]
    assert (
        "error: the loss is nan in step 10; the last checkpoint is from before" in ended.outputs[0]
    )
    assert math.isnan(ranks.log(tmp_path)[1]["train_loss"])
    state = checkpoint.load(tmp_path / "checkpoints" / checkpoint.LAST)
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (2, 0)
    assert all(tensor.isfinite().all() for tensor in state["learner"]["model"].values())


def at(number: int) -> Step:
    return Step(0, number, 0.0, {"lr": 0.1})


def values(loss: float, votes: float, norm: float) -> torch.Tensor:
    return torch.tensor([loss, votes, norm])


def test_fp16_overflows_are_counted_and_nothing_else_is_forgiven() -> None:
    monitor = StepMetrics(torch.device("cpu"), skips_overflows=True)
    for step, norm in enumerate((1.0, math.inf, math.nan, 1.0)):
        monitor.push(at(step), values(2.0, 0.0, norm))
    monitor.check()
    assert monitor.overflows == 2
    assert monitor.loss_sum == 8.0
    monitor.push(at(4), values(math.inf, 0.0, 1.0))
    with pytest.raises(NotFinite, match="the loss is inf in step 4"):
        monitor.check()
    strict = StepMetrics(torch.device("cpu"))
    strict.push(at(7), values(2.0, 0.0, math.inf))
    with pytest.raises(NotFinite, match="the gradient's norm is inf in step 7"):
        strict.push(at(8), values(2.0, 0.0, 1.0))


ONE_EPOCH = ("--training.epochs=1", "--schedule.lr={0: 0.01}", "--schedule.resolution={0: 32}")


def overflow_in_step_2(notes: Path) -> None:
    """Train in fp16, which CPUs can too, with a loss scale that overflows once."""
    precision._choose = lambda asked, device: "fp16"

    def wrap(take: TakeStep, train_step: TrainStep) -> TakeStep:
        def scaled(batches: Iterator[Batch], step: Step, stop: bool) -> torch.Tensor:
            train_step.scaler.scale(torch.zeros(1))  # its first use makes its tensors
            train_step.scaler.update(2.0**127 if step.number == 2 else 1024.0)
            before = [p.detach().clone() for p in train_step.network.parameters()]
            values = take(batches, step, stop)
            same = all(map(torch.equal, before, train_step.network.parameters()))
            note = notes / f"{step.number:02}.{os.environ['RANK']}"
            note.write_text("skipped" if same else "taken")
            return values

        return scaled

    ranks.wrap_step(wrap)


@pytest.mark.slow
def test_an_fp16_overflow_skips_its_step_everywhere(dataset: Dataset, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    ended = ranks.run(
        ranks.arguments(dataset, tmp_path, *ONE_EPOCH),
        tmp_path,
        hook=functools.partial(overflow_in_step_2, notes),
    )
    assert ended.codes == [FINISHED] * 2, ended.outputs
    assert "steps skipped because fp16 gradients overflowed: 1" in ended.outputs[0]
    skipped = [path.name for path in sorted(notes.iterdir()) if path.read_text() == "skipped"]
    assert skipped == ["02.0", "02.1"]
    state = checkpoint.load(tmp_path / "checkpoints" / checkpoint.LAST)
    assert state["progress"]["overflows"] == 1
    assert state["learner"]["scaler"]["scale"] == 1024.0
    assert all(math.isfinite(row["train_loss"]) for row in ranks.log(tmp_path))


def test_a_loss_that_has_not_been_read_is_not_said_to_be_no_number() -> None:
    monitor = StepMetrics(torch.device("cpu"))
    monitor.push(at(0), values(1.25, 0.0, 1.0))
    assert monitor.latest == "loss -"
    monitor.push(at(1), values(1.0, 0.0, 1.0))
    assert monitor.latest == "loss 1.250"


def test_every_rank_learns_of_a_stop_at_the_same_step() -> None:
    """A rank that reads early, to save, must not stop before those that do not."""
    early, late = StepMetrics(torch.device("cpu")), StepMetrics(torch.device("cpu"))
    for monitor in (early, late):
        monitor.push(at(0), values(1.0, 1.0, 1.0))
    early.read()
    assert not early.stop
    for monitor in (early, late):
        monitor.push(at(1), values(1.0, 0.0, 1.0))
        assert monitor.stop
