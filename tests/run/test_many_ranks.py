"""Runs of four and eight ranks, killed in the middle of an epoch, end with the bits they would have had.

Two ranks cannot show it: a + b = b + a, however a sum is laid out.
"""

import functools
import os
import signal
from pathlib import Path

import pytest

from ffcv_r50.errors import FINISHED
from ffcv_r50.trainer import TakeStep
from ffcv_r50.training.step import TrainStep
from tests import ranks
from tests.conftest import Dataset


def on_nodes(each: int, bf16: bool, more: ranks.Hook | None) -> None:
    """A hook: the launcher says that so many ranks are on a node. Sees to it that the step sums so."""
    os.environ["LOCAL_WORLD_SIZE"] = f"{each}"
    os.environ["LOCAL_RANK"] = f"{int(os.environ['RANK']) % each}"

    def check(take: TakeStep, train_step: TrainStep) -> TakeStep:
        sums = train_step._sums
        assert (len(sums._buckets) > 1) == (each < int(os.environ["WORLD_SIZE"]))
        assert sums._bf16 == bf16
        return take

    ranks.wrap_step(check)
    if more:
        more()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "nodes", "norm", "precision"),
    [
        (4, 1, 2, "fp32"),
        (8, 1, 2, "fp32"),
        (4, 2, 2, "bf16"),
        # Sums begin during the backward pass, among those of batch-norm that two neighbours share.
        (8, 2, 4, "fp32"),
    ],
)
def test_killed_in_the_middle_of_an_epoch(
    dataset: Dataset, tmp_path: Path, world_size: int, nodes: int, norm: int, precision: str
) -> None:
    more = ["--validation.batch_size=4", f"--training.norm_batch_size={norm}"]
    more += [f"--training.reduce_precision={precision}"]

    def run(folder: Path, hook: ranks.Hook | None = None) -> ranks.Ended:
        arguments = ranks.arguments(dataset, folder, *more)
        on = functools.partial(on_nodes, world_size // nodes, precision == "bf16", hook)
        return ranks.run(arguments, folder, ranks=world_size, hook=on)

    undisturbed, broken = tmp_path / "undisturbed", tmp_path / "broken"
    ended = run(undisturbed)
    assert ended.codes == [FINISHED] * world_size, ended.outputs
    killed = run(broken, ranks.at_step(6, signal.SIGKILL))
    assert killed.codes == [-signal.SIGKILL] * world_size, killed.outputs
    continued = run(broken)
    assert continued.codes == [FINISHED] * world_size, continued.outputs
    assert "continuing after epoch 1 of 3 and" in continued.outputs[0]
    ranks.assert_same_run(undisturbed, broken)
