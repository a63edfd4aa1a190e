"""Runs of several ranks that something happens to at an exact step, without sleeping.

The ranks are forked from a server that has imported everything: a start takes no time. What is to
happen is a function that the rank calls before it trains; it puts itself in front of a step.
"""

import functools
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ffcv_r50 import trainer
from ffcv_r50.config import settings
from ffcv_r50.errors import exit_with
from ffcv_r50.training.learner import Learner
from tests.conftest import Dataset

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["ffcv_r50.trainer"])

# A small network with dropout and batch-norm, four steps an epoch, deterministic.
SMALL = (
    "--model.arch=mobilenet_v3_small",
    "--model.zero_init_residual=0",
    "--training.batch_size=16",
    "--training.norm_batch_size=8",
    "--training.deterministic=1",
    "--checkpoint.every=1 steps",
)
STEPS = 4

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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    outputs = [folder / f"output-{rank}" for rank in range(ranks)]
    processes = []
    for rank, output in enumerate(outputs):
        environment = {"OMP_NUM_THREADS": "1"}
        if ranks > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes.append(
            _CONTEXT.Process(target=_rank, args=(environment, arguments, str(output), hook))
        )
    for process in processes:
        process.start()
    deadline = began + 60
    try:
        while any(p.is_alive() and not _stopped(p.pid) for p in processes):
            assert time.monotonic() < deadline, [output.read_text() for output in outputs]
            multiprocessing.connection.wait([p.sentinel for p in processes if p.is_alive()], 0.1)
    finally:
        for process in processes:
            process.kill()
            process.join()
    codes = [p.exitcode for p in processes if p.exitcode is not None]
    return Ended(codes, [o.read_text() for o in outputs], time.monotonic() - began)


def _stopped(pid: int | None) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):  # it ended just now
        return False


def _rank(
    environment: dict[str, str], arguments: list[str], output: str, hook: Hook | None
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    warnings.simplefilter("error")
    if hook:
        hook()
    exit_with(lambda: trainer.run(settings.load(arguments)), together=True)


def arguments(dataset: Dataset, folder: Path, *more: str) -> list[str]:
    """The command line of a small run in ``folder``; ``more`` replaces what is in SMALL."""
    given = {word.partition("=")[0] for word in more}
    small = [word for word in SMALL if word.partition("=")[0] not in given]
    return dataset.arguments(folder, *small, *more)


# ---------------------------------------------------------------------------------------------- hooks


def before_step(action: Hook, at: int, rank: int | None = None) -> None:
    """Call ``action`` before this step of the run, on one rank or on all."""
    step = Learner.step

    def acted(
        self: Learner, parts: Any, lr: float, number: int, stop: bool = False
    ) -> torch.Tensor:
        if number == at and rank in (None, int(os.environ.get("RANK", "0"))):
            action()
        return step(self, parts, lr, number, stop)

    Learner.step = acted  # type: ignore[method-assign]


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
    step = Learner.step

    def note(self: Learner, parts: Any, lr: float, number: int, stop: bool = False) -> torch.Tensor:
        sums = []

        def seen() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for images, labels in parts:
                sums.append(
                    f"{zlib.crc32(images.contiguous().numpy().tobytes() + bytes(labels.tolist()))}"
                )
                yield images, labels

        values = step(self, seen(), lr, number, stop)
        (folder / f"{number:03}.{os.environ.get('RANK', '0')}").write_text("\n".join(sums))
        return values

    Learner.step = note  # type: ignore[method-assign]
    if more:
        more()


def noted(folder: Path) -> dict[int, list[str]]:
    """For each step the checksums of its parts in the order of the global batch."""
    steps: dict[int, list[str]] = {}
    for path in sorted(folder.iterdir()):
        steps.setdefault(int(path.stem), []).extend(path.read_text().splitlines())
    return steps


# ------------------------------------------------------------------------------------ what a run left

TIMES = ("images_per_second", "data_wait_fraction", "epoch_seconds", "eval_seconds")
"""Values of the log that differ between equal runs."""


def log(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's log, without times."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
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
    """Both runs ended with the same bits and the same log."""
    assert_same_weights(one, two)
    assert log(one) == log(two)
