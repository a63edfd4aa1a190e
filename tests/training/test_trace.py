"""A profile of some steps of a run, and what is said where there is none."""

import gzip
import json
from pathlib import Path

import pytest

from ffcv_r50.config import settings
from ffcv_r50.errors import UserError
from ffcv_r50.training.trace import NAME, Trace
from tests import ranks
from tests.conftest import Dataset


def names(folder: Path) -> set[str]:
    with gzip.open(folder / NAME) as file:
        return {event["name"] for event in json.load(file)["traceEvents"]}


@pytest.mark.slow
def test_the_steps_of_a_window_and_no_others(dataset: Dataset, tmp_path: Path) -> None:
    """Over the end of an epoch; the trained bits are those of a run without."""
    runs = {name: tmp_path / name for name in ("traced", "plain")}
    for name, more in (("traced", ["--logging.profile=2-5"]), ("plain", [])):
        words = ranks.arguments(dataset, runs[name], "--training.epochs=3", *more)
        ended = ranks.run(words, tmp_path / f"{name}-output")
        assert ended.codes == [0, 0], ended.outputs
        if more:
            assert "trace.json.gz: a trace of steps 2 to 5; open it at" in ended.outputs[0]
            assert "a trace of" not in ended.outputs[1]
    assert {f"step {n}" for n in range(2, 6)} == {n for n in names(runs["traced"]) if "step " in n}
    assert "aten::convolution" in names(runs["traced"])
    ranks.assert_same_run(runs["traced"], runs["plain"])


def test_what_ends_in_the_window_is_kept(tmp_path: Path) -> None:
    said: list[str] = []
    trace = Trace(range(2, 5), tmp_path, said.append)
    for number in (0, 1, 2, 3):
        with trace.step(number):
            pass
    trace.close()
    trace.close()
    assert said == [
        f"{tmp_path / NAME}: a trace of steps 2 to 3; open it at https://ui.perfetto.dev"
    ]
    assert {n for n in names(tmp_path) if "step " in n} == {"step 2", "step 3"}
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_folder_that_is_gone_stops_no_training(tmp_path: Path) -> None:
    said: list[str] = []
    trace = Trace(range(1), tmp_path / "gone", said.append)
    with trace.step(0):
        pass
    assert len(said) == 1
    assert said[0].startswith(f"warning: {tmp_path}/gone/{NAME}: the trace could not be written")


@pytest.mark.parametrize("words", ["x", "5-", "-5", "7-3", "1-2-3", "0-100", "1.5"])
def test_windows_that_are_none(dataset: Dataset, tmp_path: Path, words: str) -> None:
    with pytest.raises(UserError, match=f"expected steps such as '20-30', .* got '{words}'"):
        settings.load(dataset.arguments(tmp_path, f"--logging.profile={words}"))


@pytest.mark.slow
def test_steps_that_the_run_does_not_have(dataset: Dataset, tmp_path: Path) -> None:
    words = ranks.arguments(dataset, tmp_path / "run", "--logging.profile=11-12")
    ended = ranks.run(words, tmp_path / "output", ranks=1)
    assert ended.codes == [2]
    assert "error: logging.profile=11-12: the run's steps are 0 to 11" in ended.outputs[0]
    assert not (tmp_path / "run").exists()
