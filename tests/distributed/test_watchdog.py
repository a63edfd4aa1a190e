"""A rank that dies, hangs or fails: the others end in time and say which one it was."""

import functools
import signal
from pathlib import Path

import pytest

from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import BAD_INPUT, FAULT
from tests import ranks
from tests.conftest import Dataset

TIMEOUT = 4
GRACE = 45
"""More than a start and an end take on a busy machine, less than gloo's or torch's own defaults."""


def fail(dataset: Dataset, folder: Path, hook: ranks.Hook, *more: str) -> ranks.Ended:
    arguments = ranks.arguments(dataset, folder, f"--dist.timeout_seconds={TIMEOUT}", *more)
    return ranks.run(arguments, folder, hook=hook)


@pytest.mark.slow
@pytest.mark.parametrize("send", [signal.SIGKILL, signal.SIGSTOP])
def test_rank_1_is_gone(dataset: Dataset, tmp_path: Path, send: signal.Signals) -> None:
    """Killed, or stopped so that it neither works nor closes its connections."""
    ended = fail(dataset, tmp_path, ranks.at_step(4, send, rank=1))
    assert ended.codes == [FAULT, -signal.SIGKILL], ended.outputs
    assert "error: rank 1: on " in ended.outputs[0]
    assert "has not been heard of for" in ended.outputs[0]
    assert "or its machine or network is gone; it was at " in ended.outputs[0]
    assert ended.seconds < 2 * TIMEOUT + GRACE
    assert ranks.status(tmp_path)["state"] == "lost"
    assert ranks.status(tmp_path)["reason"].startswith("rank 1: ")


@pytest.mark.slow
@pytest.mark.parametrize("send", [signal.SIGKILL, signal.SIGSTOP])
def test_rank_0_is_gone(dataset: Dataset, tmp_path: Path, send: signal.Signals) -> None:
    ended = fail(dataset, tmp_path, ranks.at_step(4, send, rank=0))
    assert ended.codes == [-signal.SIGKILL, FAULT], ended.outputs
    assert "error: rank 0: " in ended.outputs[1]
    assert ended.seconds < 2 * TIMEOUT + GRACE


@pytest.mark.slow
def test_rank_1_hangs_while_its_heart_beats(dataset: Dataset, tmp_path: Path) -> None:
    ended = fail(dataset, tmp_path, functools.partial(ranks.before_step, ranks.hang, 4, 1))
    assert ended.codes == [FAULT, FAULT], ended.outputs
    assert "error: rank 1: hangs: no rank has moved for 4 s, rank 1 is" in ended.outputs[0]
    assert "at step 0 of epoch 1" in ended.outputs[0]
    assert ranks.status(tmp_path)["state"] == "lost"
    assert ended.seconds < 2 * TIMEOUT + GRACE


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
    assert "Traceback" not in "".join(ended.outputs)
