"""Runs of four and eight ranks, killed in the middle of an epoch, end with the bits they would have had.

Two ranks cannot show it: a + b = b + a, however a sum is laid out.
"""

import signal
from pathlib import Path

import pytest

from ffcv_r50.errors import FINISHED
from tests import ranks
from tests.conftest import Dataset


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [4, 8])
def test_killed_in_the_middle_of_an_epoch(
    dataset: Dataset, tmp_path: Path, world_size: int
) -> None:
    more = ("--training.norm_batch_size=2", "--validation.batch_size=4")
    undisturbed, broken = tmp_path / "undisturbed", tmp_path / "broken"
    ended = ranks.run(ranks.arguments(dataset, undisturbed, *more), undisturbed, ranks=world_size)
    assert ended.codes == [FINISHED] * world_size, ended.outputs
    arguments = ranks.arguments(dataset, broken, *more)
    hook = ranks.at_step(6, signal.SIGKILL)
    killed = ranks.run(arguments, broken, ranks=world_size, hook=hook)
    assert killed.codes == [-signal.SIGKILL] * world_size, killed.outputs
    continued = ranks.run(arguments, broken, ranks=world_size)
    assert continued.codes == [FINISHED] * world_size, continued.outputs
    assert "continuing after epoch 1 of 3 and" in continued.outputs[0]
    ranks.assert_same_run(undisturbed, broken)
