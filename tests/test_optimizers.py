"""Optimizers, clipping and losses together, on real processes."""

import signal
from pathlib import Path

import pytest

from ffcv_r50.errors import BAD_INPUT, FINISHED
from ffcv_r50.run import checkpoint
from tests import ranks
from tests.conftest import Dataset

PEAK = 0.02
CHOICES = {
    "sgd": (
        *("--optimizer.name=sgd", "--optimizer.decoupled=1", "--training.weight_decay=0.01"),
        *("--clipping.name=value", "--clipping.at=0.01"),
    ),
    "lars": (
        *("--optimizer.name=lars", "--optimizer.trust=0.05"),
        *("--clipping.name=norm", "--clipping.at=0.5"),
    ),
    "lamb": (
        *(
            "--optimizer.name=lamb",
            "--clipping.name=agc",
            "--loss.name=bce",
            "--loss.reduction=sum",
        ),
        *("--loss.target_threshold=0.2", "--model.prior_head_bias=1"),
        "--training.label_smoothing=0.1",
    ),
}


def arguments(dataset: Dataset, folder: Path, *more: str) -> list[str]:
    schedule = f"--schedule.lr={{0: 0.01, 1: {PEAK}, 2: 0.001}}"
    return ranks.arguments(
        dataset, folder, "--training.epochs=2", schedule, "--checkpoint.every=1 steps", *more
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOICES)
def test_killed_and_continued_ends_in_the_same_bits(
    name: str, dataset: Dataset, tmp_path: Path
) -> None:
    straight, killed = (
        arguments(dataset, tmp_path / run, *CHOICES[name]) for run in ("straight", "killed")
    )
    ended = ranks.run(straight, tmp_path / "straight", ranks=2)
    assert ended.codes == [FINISHED] * 2, ended.outputs
    hook = ranks.at_step(3, signal.SIGKILL)
    ended = ranks.run(killed, tmp_path / "killed", ranks=2, hook=hook)
    assert ended.codes == [-signal.SIGKILL] * 2
    state = checkpoint.load(tmp_path / "killed" / "checkpoints" / checkpoint.LAST)["learner"]
    assert [group["peak_lr"] for group in state["optimizer"]["param_groups"]] == [PEAK] * 2
    ended = ranks.run(killed, tmp_path / "killed", ranks=2)
    assert ended.codes == [FINISHED] * 2, ended.outputs
    assert "continuing after" in ended.outputs[0]
    ranks.assert_same_run(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.slow
def test_a_threshold_of_too_few_classes_is_refused_before_training(
    dataset: Dataset, tmp_path: Path
) -> None:
    """The settings alone do not say how many classes share the smoothing: 3."""
    options = (
        "--loss.name=bce",
        "--loss.target_threshold=0.965",
        "--training.label_smoothing=0.06",
    )
    given = arguments(dataset, tmp_path / "run", *options)
    ended = ranks.run(given, tmp_path / "run", ranks=2)
    assert ended.codes == [BAD_INPUT] * 2
    assert (
        "error: loss.target_threshold: 0.965 makes every target 0: the largest of label smoothing "
        "0.06 over 3 classes is 0.96; choose a lower one"
    ) in ended.outputs[0]
