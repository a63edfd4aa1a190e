"""A rank that dies, hangs or fails: the others end in time and say which one it was."""

import functools
import os
import signal
import socket
from pathlib import Path

import pytest

from ffcv_r50.data.beton import Beton
from ffcv_r50.distributed.heartbeats import Exchange, Fault
from ffcv_r50.errors import BAD_INPUT, FAULT
from ffcv_r50.run.run_folder import RunFolder
from ffcv_r50.run.status import read_status
from tests import ranks
from tests.conftest import Dataset

TIMEOUT = 8
"""Seconds: what a step may take on a busy machine, so that nobody is blamed for it."""

pytestmark = pytest.mark.slow


def fail(dataset: Dataset, folder: Path, hook: ranks.Hook, size: int = 2) -> ranks.Ended:
    arguments = ranks.arguments(dataset, folder, f"--dist.timeout_seconds={TIMEOUT}")
    return ranks.run(arguments, folder, ranks=size, hook=hook)


@pytest.mark.slow
@pytest.mark.parametrize("send", [signal.SIGKILL, signal.SIGSTOP])
def test_rank_1_is_gone(dataset: Dataset, tmp_path: Path, send: signal.Signals) -> None:
    """Killed, or stopped so that it neither works nor closes its connections."""
    ended = fail(dataset, tmp_path, ranks.at_step(4, send, rank=1))
    assert ended.codes == [FAULT, -signal.SIGKILL], ended.outputs
    assert f"error: rank 1: no heartbeat from {socket.gethostname()} for " in ended.outputs[0]
    assert "or its machine or network is down; last seen at " in ended.outputs[0]
    assert ranks.status(tmp_path)["state"] == "lost"
    assert ranks.status(tmp_path)["reason"].startswith("rank 1: ")


@pytest.mark.slow
@pytest.mark.parametrize("send", [signal.SIGKILL, signal.SIGSTOP])
def test_rank_0_is_gone(dataset: Dataset, tmp_path: Path, send: signal.Signals) -> None:
    ended = fail(dataset, tmp_path, ranks.at_step(4, send, rank=0))
    assert ended.codes == [-signal.SIGKILL, FAULT], ended.outputs
    assert "error: rank 0: " in ended.outputs[1]
    assert read_status(tmp_path)["state"] == "lost"


def test_one_of_four_dies_and_only_rank_0_says_so(dataset: Dataset, tmp_path: Path) -> None:
    """The others read of it in the store, and end without waiting for a time-out of their own."""
    ended = fail(dataset, tmp_path, ranks.at_step(4, signal.SIGSTOP, rank=2), size=4)
    assert ended.codes == [FAULT, FAULT, -signal.SIGKILL, FAULT], ended.outputs
    assert "error: rank 2: no heartbeat from " in ended.outputs[0]
    assert "".join(ended.outputs).count("error: ") == 1
    assert ranks.status(tmp_path)["state"] == "lost"


def hang_when_told_of_a_fault() -> None:
    record = RunFolder.set_status

    def hanging(self: RunFolder, state: str, code: int | None = None, reason: str = "") -> None:
        if state == "lost":
            ranks.hang()
        record(self, state, code, reason)

    RunFolder.set_status = hanging  # type: ignore[method-assign]
    ranks.at_step(4, signal.SIGSTOP, rank=1)()


def test_a_file_system_that_hangs_does_not_keep_rank_0(dataset: Dataset, tmp_path: Path) -> None:
    ended = fail(dataset, tmp_path, hang_when_told_of_a_fault)
    assert ended.codes == [FAULT, -signal.SIGKILL], ended.outputs
    assert ended.outputs[0].count("error: ") == 1


def break_the_watchdog_of(rank: int) -> None:
    round = Exchange.round

    def broken(self: Exchange, progress: int, at: str) -> Fault | None:
        if os.environ["RANK"] == str(rank) and "epoch 1" in at:
            raise ZeroDivisionError("by a bug")
        return round(self, progress, at)

    Exchange.round = broken  # type: ignore[method-assign]
    ranks.before_step(ranks.hang, 4)


@pytest.mark.parametrize("rank", [0, 1])
def test_no_rank_goes_on_without_its_watchdog(dataset: Dataset, tmp_path: Path, rank: int) -> None:
    ended = fail(dataset, tmp_path, functools.partial(break_the_watchdog_of, rank))
    assert ended.codes == [FAULT, FAULT], ended.outputs
    assert "ZeroDivisionError: by a bug" in ended.outputs[rank]
    said = ("its watchdog failed (ZeroDivisionError: by a bug)", "no heartbeat from ")[rank]
    assert f"error: rank {rank}: {said}" in ended.outputs[0]


@pytest.mark.slow
def test_rank_1_hangs_while_its_heart_beats(dataset: Dataset, tmp_path: Path) -> None:
    ended = fail(dataset, tmp_path, functools.partial(ranks.before_step, ranks.hang, 4, 1))
    assert ended.codes == [FAULT, FAULT], ended.outputs
    assert "error: rank 1: hangs: no rank has made progress for 8 s, rank 1 is" in ended.outputs[0]
    assert "at step 0 of epoch 1" in ended.outputs[0]
    assert ranks.status(tmp_path)["state"] == "lost"


def break_rank_1() -> None:
    def action() -> None:
        raise ZeroDivisionError("by a bug")

    ranks.before_step(action, 4, 1)


@pytest.mark.slow
def test_an_exception_on_rank_1_is_told_by_rank_0(dataset: Dataset, tmp_path: Path) -> None:
    ended = fail(dataset, tmp_path, break_rank_1)
    assert ended.codes == [FAULT, FAULT], ended.outputs
    assert "error: rank 1: ZeroDivisionError: by a bug" in ended.outputs[0]
    assert "Traceback" in ended.outputs[1]
    assert ranks.status(tmp_path)["state"] == "failed"


def damage_an_image_of(rank: int, source: Path, target: Path) -> int:
    """Copy a ``.beton`` and spoil a JPEG that only this rank of two evaluates; returns its index."""
    content = bytearray(source.read_bytes())
    beton = Beton(source)
    half = beton.num_samples // 2
    for index in range(rank * half, half + rank * half):
        offset, size = int(beton.offsets[index]), int(beton.sizes[index])
        if content[offset : offset + 2] == b"\xff\xd8":
            content[offset : offset + size] = bytes(size)
            target.write_bytes(content)
            Path(f"{target}.json").write_bytes(Path(f"{source}.json").read_bytes())
            return index
    raise AssertionError("no JPEG in that half")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_bad_image_on_one_rank_ends_all(dataset: Dataset, tmp_path: Path, rank: int) -> None:
    bad = tmp_path / "bad.beton"
    index = damage_an_image_of(rank, dataset.val, bad)
    arguments = ranks.arguments(dataset, tmp_path / "run", f"--dist.timeout_seconds={TIMEOUT}")
    arguments.remove(f"--data.val_dataset={dataset.val}")
    ended = ranks.run([*arguments, f"--data.val_dataset={bad}"], tmp_path)
    assert ended.codes == [BAD_INPUT] * 2, ended.outputs
    errors = [line for line in "".join(ended.outputs).splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ended.outputs
    who = "rank 1: " if rank else ""
    assert errors[0].startswith(f"error: {who}{bad}: ")
    assert f"sample {index}" in errors[0]
    assert ranks.status(tmp_path / "run")["state"] == "failed"
    assert "Traceback" not in "".join(ended.outputs)
