"""Whether two runs saw the same data at the same rates."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ffcv_r50 import verify
from ffcv_r50.errors import FINISHED, STOPPED_AS_ASKED, UserError
from tests import ranks
from tests.conftest import Dataset


def log(folder: Path, *changes: dict[str, Any], steps: int = 10) -> Path:
    """Of steps 0, 1, ..., with other values in those that ``changes`` name."""
    folder.mkdir()
    lines = []
    for step in range(steps):
        row: dict[str, Any] = {
            "step": step,
            "lr": 0.1 + step,
            "resolution": 32,
            "fingerprint": f"{step:016x}",
        }
        if step % 2 == 0:
            row |= {"epoch": step / 4, "loss": 2.0}
        for change in changes:
            if change["step"] == step:
                row |= change
        lines.append(json.dumps(row) + "\n")
    (folder / "steps.jsonl").write_text("".join(lines))
    return folder


def lines(a: Path, b: Path) -> list[str]:
    return [*verify.told(verify.compare(verify.rows(a), verify.rows(b)), [a, b])]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"step": 3, "fingerprint": "f" * 16}, "step 3: other data (samples, crops or labels); the 3 steps before agree"),
        ({"step": 0, "lr": 0.2}, "step 0: another learning rate (0.1 and 0.2)"),
        ({"step": 9, "resolution": 64}, "step 9: another resolution (32 and 64 px), other data (samples, crops or labels); the 9 steps before agree"),
    ],
)  # fmt: skip
def test_the_first_step_that_differs_is_named(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    a = log(tmp_path / "a")
    b = log(tmp_path / "b", change, {"step": 9, "fingerprint": "e" * 16})
    assert lines(a, b)[0].startswith(told)


def test_arithmetic_is_told_from_data(tmp_path: Path) -> None:
    a, b = log(tmp_path / "a"), log(tmp_path / "b", {"step": 4, "loss": 2.0 + 2e-7}, steps=8)
    assert lines(a, a) == [
        "the same data at the same rates in all 10 steps that both have",
        "the same losses, to the bit, in the 5 steps that recorded them",
    ]
    assert lines(a, b) == [
        "the same data at the same rates in all 8 steps that both have",
        "they differ by arithmetic alone: losses by 1.0e-07 of their size at most, from step 4 on",
    ]


def test_a_line_that_is_being_written_is_left_out_and_a_damaged_one_is_named(
    tmp_path: Path,
) -> None:
    a = log(tmp_path / "a")
    path = a / "steps.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert len([*verify.rows(a)]) == 9
    for damaged in (b"[]\n", b"\xff\n", b'{"step": 1}\n', b"[" * 100_000 + b"\n"):
        path.write_bytes(whole.splitlines(keepends=True)[0] + damaged)
        with pytest.raises(UserError, match=rf"^{path}:2: is damaged"):
            [*verify.rows(a)]


@pytest.mark.slow
def test_runs_on_one_two_and_four_processes_continued_and_changed(
    dataset: Dataset, tmp_path: Path
) -> None:
    """Of a run: another number of processes, a stop in the middle, another seed, crop and rate."""

    short = ["--logging.every=1", "--training.epochs=1", "--schedule.resolution={0: 32}"]

    def train(name: str, count: int, *more: str, hook: ranks.Hook | None = None) -> list[int]:
        rate = (
            []
            if any("schedule.lr" in word for word in more)
            else ["--schedule.lr={0: 0.001, 1: 0.01}"]
        )
        arguments = ranks.arguments(dataset, tmp_path / name, *short, *rate, *more)
        return ranks.run(arguments, tmp_path / f"{name}-output", ranks=count, hook=hook).codes

    assert train("one", 1) == [FINISHED]
    assert train("two", 2, hook=ranks.at_step(1, signal.SIGTERM)) == [STOPPED_AS_ASKED] * 2
    assert train("two", 1) == [FINISHED]
    assert train("four", 4, "--training.norm_batch_size=4") == [FINISHED] * 4
    assert train("seed", 1, "--training.seed=1") == [FINISHED]
    assert train("crop", 1, "--data.flip=0.25") == [FINISHED]
    assert train("rate", 1, "--schedule.lr={0: 0.001, 1: 0.02}") == [FINISHED]

    def verified(other: str) -> tuple[bool, list[str]]:
        folders = [tmp_path / "one", tmp_path / other]
        found = verify.compare(*map(verify.rows, folders))
        return bool(found.different), [*verify.told(found, folders)]

    same = "the same data at the same rates in all 4 steps that both have"
    for name in ("one", "two", "four"):
        differs, told = verified(name)
        assert (differs, told[0]) == (False, same)
    assert verified("seed") == (True, [
        "step 0: other data (samples, crops or labels)",
        "their settings differ: training.seed (0 and 1)",
    ])  # fmt: skip
    differs, told = verified("crop")
    assert differs
    assert told[0].startswith("step 0: other data")
    assert told[1] == "their settings differ: data.flip (0.5 and 0.25)"
    differs, told = verified("rate")
    assert differs
    assert told[0].startswith("step 1: another learning rate (")
    for name, code in (("two", 0), ("seed", 1)):
        done = subprocess.run(
            [sys.executable, "-m", "ffcv_r50.verify", "one", name],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (code, "")
        assert done.stdout.splitlines() == verified(name)[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "command line: pass the folders of two runs"),
        (["a", "--b"], "command line: pass the folders of two runs"),
        (["a", "b"], "a: has no steps.jsonl; name the folder of a run"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["verify", *words])
    with pytest.raises(UserError, match=message):
        verify.main()
