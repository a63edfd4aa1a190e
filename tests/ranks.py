"""Runs of several ranks that something happens to at an exact step, without sleeping.

What is to happen is a function, a hook, that the rank calls before it trains; it may put something
around each step.
"""

import functools
import json
import os
import signal
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.local_ranks import CONTEXT, PRELOAD, LocalRanks
from ffcv_r50 import trainer
from ffcv_r50.config import settings
from ffcv_r50.errors import exit_with
from ffcv_r50.logs.row import TIMES
from ffcv_r50.trainer import TakeStep
from ffcv_r50.training.protocols import Batch, Step
from ffcv_r50.training.step import TrainStep
from tests.conftest import Dataset

# Loaded once for all ranks, as what trains SMALL takes seconds to import.
CONTEXT.set_forkserver_preload([*PRELOAD, "timm"])

# A small network with dropout and batch-norm, four steps an epoch, deterministic.
SMALL = (
    "--model.arch=timm/test_efficientnet",
    "--model.dropout=0.2",
    "--training.batch_size=16",
    "--training.norm_batch_size=8",
    "--training.deterministic=1",
    "--checkpoint.every=1 steps",
)
STEPS = 4
WITHOUT_TIMM = ("--model.arch=shufflenet_v2_x0_5", "--model.dropout=null")
"""For ranks that are not forked from the server: to each timm's import is two seconds."""

Hook = Callable[[], None]


class Ended(NamedTuple):
    """How the ranks of a run ended."""

    codes: list[int]
    """Negative for signals."""
    outputs: list[str]
    """Standard output and error of each rank."""
    seconds: float


def run(arguments: list[str], folder: Path, *, ranks: int = 2, hook: Hook | None = None) -> Ended:
    """Train with ``arguments`` on so many ranks, in each of which ``hook`` is called first.

    A rank that is left over (stopped by SIGSTOP) is killed.
    """
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    outputs = [folder / f"output-{rank}" for rank in range(ranks)]
    processes = LocalRanks(functools.partial(main, arguments, hook), outputs)
    deadline = began + 150 + 20 * ranks  # of which a first start compiles for a minute
    try:
        while not processes.stopped():
            assert time.monotonic() < deadline, [output.read_text() for output in outputs]
            processes.wait_for_change(0.1)
    finally:
        processes.kill()
    codes = processes.wait(0)
    assert codes is not None
    return Ended(codes, [o.read_text() for o in outputs], time.monotonic() - began)


def run_program(
    program: Callable[[], object], folder: Path, *, ranks: int, seconds: float
) -> list[str]:
    """Run something else than training on so many ranks, which all have to end well.

    Args:
        program: what each rank runs; picklable.
        folder: for their outputs.
        ranks: how many.
        seconds: after which they are killed.

    Returns:
        Standard output and error of each rank.
    """
    outputs = [folder / f"output-{rank}" for rank in range(ranks)]
    processes = LocalRanks(program, outputs)
    try:
        assert processes.wait(seconds) == [0] * ranks, [output.read_text() for output in outputs]
    finally:
        processes.kill()
    return [output.read_text() for output in outputs]


def main(arguments: list[str], hook: Hook | None = None) -> None:
    """What a rank runs: the trainer, with whatever the hooks put around its steps."""
    warnings.simplefilter("error")
    if hook:
        hook()
    exit_with(lambda: trainer.run(settings.load(arguments), around), together=True)


def arguments(dataset: Dataset, folder: Path, *more: str) -> list[str]:
    """The command line of a small run in ``folder``; ``more`` replaces what is in SMALL."""
    given = {word.partition("=")[0] for word in more}
    small = [word for word in SMALL if word.partition("=")[0] not in given]
    return dataset.arguments(folder, *small, *more)


# ---------------------------------------------------------------------------------------------- hooks


Wrap = Callable[[TakeStep, TrainStep], TakeStep]
_WRAPS: list[Wrap] = []


def around(train_step: TrainStep) -> TakeStep:
    """What hooks want around a step, for :func:`ffcv_r50.trainer.run`."""
    take: TakeStep = train_step
    for wrap in _WRAPS:
        take = wrap(take, train_step)
    return take


def wrap_step(wrap: Wrap) -> None:
    """Put something around each step of this process's run."""
    _WRAPS.append(wrap)


def before_step(action: Hook, at: int, rank: int | None = None) -> None:
    """Call ``action`` before this step of the run, on one rank or on all."""

    def wrap(take: TakeStep, train_step: TrainStep) -> TakeStep:
        def acted(batches: Iterator[Batch], step: Step, stop: bool) -> torch.Tensor:
            if step.number == at and rank in (None, int(os.environ.get("RANK", "0"))):
                action()
            return take(batches, step, stop)

        return acted

    wrap_step(wrap)


def signal_self(number: signal.Signals) -> None:
    """Send a signal to this process; the program hears it at once."""
    os.kill(os.getpid(), number)


def hang() -> None:
    """Never return."""
    threading.Event().wait()


def at_step(number: int, send: signal.Signals, rank: int | None = None) -> Hook:
    """A hook: the rank (or every rank) gets the signal before the step."""
    return functools.partial(before_step, functools.partial(signal_self, send), number, rank)


def noting(folder: Path, more: Hook | None = None) -> Hook:
    """A hook: write down a checksum of each part of each step, for :func:`noted`."""
    return functools.partial(_note, folder, more)


def _note(folder: Path, more: Hook | None) -> None:
    def wrap(take: TakeStep, train_step: TrainStep) -> TakeStep:
        def note(batches: Iterator[Batch], step: Step, stop: bool) -> torch.Tensor:
            sums = []

            def seen() -> Iterator[Batch]:
                for batch in batches:
                    pixels = batch.images.contiguous().numpy().tobytes()
                    sums.append(f"{zlib.crc32(pixels + bytes(batch.targets.tolist()))}")
                    yield batch

            values = take(seen(), step, stop)
            name = f"{step.number:03}.{os.environ.get('RANK', '0')}"
            (folder / name).write_text("\n".join(sums))
            return values

        return note

    wrap_step(wrap)
    if more:
        more()


def noted(folder: Path) -> dict[int, list[str]]:
    """For each step the checksums of its parts in the order of the global batch."""
    steps: dict[int, list[str]] = {}
    for path in sorted(folder.iterdir()):
        steps.setdefault(int(path.stem), []).extend(path.read_text().splitlines())
    return steps


# ------------------------------------------------------------------------------------ what a run left


def log(folder: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    """The rows of a run's log of epochs (or another one), without times."""
    rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: row[key] for key in row if key not in TIMES} for row in rows]


def status(folder: Path) -> dict[str, Any]:
    """What a run says of itself."""
    content: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return content


def assert_same_weights(one: Path, two: Path) -> None:
    """Both runs ended with the same bits."""
    before, after = (torch.load(run / "weights.pt", weights_only=True) for run in (one, two))
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name


def assert_same_run(one: Path, two: Path) -> None:
    """Both runs ended with the same bits and the same logs."""
    assert_same_weights(one, two)
    assert log(one) == log(two)
    assert log(one, "steps.jsonl") == log(two, "steps.jsonl")
