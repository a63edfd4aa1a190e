"""Runs against each other: numbers against loops and scipy, the program on made-up runs."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import binomtest

from ffcv_r50 import compare
from ffcv_r50.errors import UserError
from ffcv_r50.report.folder import Predictions, read_predictions
from tests.report import runs

NAMES = ["cat", "dog", "<b>owl</b>", "n01440764", "emu"]


def again(made: runs.Made, folder: Path, right: float, **settings: object) -> Path:
    """A run like another one, on the same samples, that has other samples right; with settings."""
    folder.mkdir(parents=True)
    for name in ("environment.json", "status.json", "log.jsonl", "steps.jsonl"):
        (folder / name).write_bytes((made.folder / name).read_bytes())
    config = yaml.safe_load((made.folder / "config.yaml").read_text())
    for key, value in settings.items():
        config["training"][key] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    rng = np.random.default_rng(7)
    first = np.where(rng.random(len(made.target)) < right, made.target, (made.target + 1) % 5)
    others = (first[:, None] + np.arange(1, 5)) % 5
    np.savez(
        folder / "predictions.npz",
        index=np.arange(len(first)),
        target=made.target,
        loss=np.ones(len(first), np.float32),
        classes=np.column_stack([first, others]).astype(np.int32),
        probabilities=np.tile([0.9, 0.04, 0.03, 0.02, 0.01], (len(first), 1)).astype(np.float32),
    )
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> runs.Made:
    return runs.make(tmp_path_factory.mktemp("made"), NAMES, per_class=60)


def predictions(folder: Path) -> Predictions:
    found = read_predictions(folder / "predictions.npz")
    assert found is not None
    return found


def test_a_difference_is_what_a_loop_counts(made: runs.Made, tmp_path: Path) -> None:
    a, b = predictions(made.folder), predictions(again(made, tmp_path / "b", 0.9))
    found = compare.difference(a, b)
    won: list[int] = []
    lost: list[int] = []
    gains = dict.fromkeys(range(5), 0)
    for i in range(300):
        before, now = a.classes[i, 0] == a.target[i], b.classes[i, 0] == b.target[i]
        gains[int(a.target[i])] += int(now) - int(before)
        (won if now else lost).append(i) if before != now else None
    assert sorted(found.won) == won
    assert sorted(found.lost) == lost
    # Of those won, the surest mistakes of before come first.
    sure = [a.probabilities[i, 0] for i in found.won]
    assert sure == sorted(sure, reverse=True)
    assert found.accuracy == pytest.approx((len(won) - len(lost)) / 300)
    np.testing.assert_allclose(found.classes, [gains[c] / 60 for c in range(5)])
    exact = binomtest(len(won), len(won) + len(lost)).pvalue
    assert found.paired.p_value == pytest.approx(exact)
    assert found.interval.low < found.accuracy < found.interval.high


def test_runs_on_other_samples_are_not_compared(made: runs.Made, tmp_path: Path) -> None:
    a = predictions(made.folder)
    folder = again(made, tmp_path / "b", 0.9)
    with np.load(folder / "predictions.npz") as file:
        kept = {name: file[name][:-1] for name in file}
    np.savez(folder / "predictions.npz", **kept)
    with pytest.raises(UserError, match="not evaluated on the same samples"):
        compare.difference(a, predictions(folder))


def test_seeds_make_groups_and_are_paired() -> None:
    def run(name: str, seed: int, lr: float, top_1: float) -> tuple[str, dict[str, object], float]:
        return name, {"training.seed": seed, "schedule.lr": lr}, top_1

    first = [run("1", 0, 0.1, 70.0), run("2", 1, 0.1, 71.0)]
    second = [run("3", 1, 0.2, 73.0), run("4", 0, 0.2, 71.5)]
    found = compare.groups([*first, *second, run("5", 5, 0.3, 60.0)])
    assert [group.names for group in found] == ["1, 2", "3, 4", "5"]
    mean, error = compare.over_seeds(*found[:2])
    assert mean == pytest.approx(statistics.mean([1.5, 2.0]))
    assert error == pytest.approx(statistics.stdev([1.5, 2.0]) / 2**0.5)
    # Other seeds: nothing pairs them.
    other = compare.Group("x", {7: 72.0, 8: 74.0, 9: 73.0})
    mean, error = compare.over_seeds(found[0], other)
    assert mean == pytest.approx(73 - 70.5)
    assert error == pytest.approx((0.5 / 2 + 1.0 / 3) ** 0.5)


def program(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ffcv_r50.compare", *words],
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.slow
def test_the_program_says_what_differs(made: runs.Made, tmp_path: Path) -> None:
    b = again(made, tmp_path / "b", 0.9, label_smoothing=0.2)
    c = again(made, tmp_path / "c", 0.9, seed=1)
    log = c / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows[-1]["top_1"] += 1
    log.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    d = again(made, tmp_path / "d", 0.9, label_smoothing=0.2, seed=1)
    picture = tmp_path / "curves.png"
    done = program(str(made.folder), str(b), str(c), str(d), "-o", str(picture))
    assert done.returncode == 0, done.stderr
    assert "training.label_smoothing" in done.stdout
    assert "training.seed" in done.stdout
    assert "1 -> 2: top-1 +" in done.stdout
    assert "<b>owl</b>" in done.stdout
    # Seeds 0 and 1: one point less in one of two.
    assert "over seeds, runs 1, 3 -> 2, 4: top-1 -0.50 points, standard error 0.50" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "pass the folders of at least two runs"),
        (["a"], "pass the folders of at least two runs"),
        (["a", "b", "--outputs=x"], "--outputs: there is no such option"),
        (["a", "b"], "a: there is no such folder"),
    ],
)
def test_a_wrong_command_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare.main(words)
