"""Runs of four and eight ranks, killed in the middle of an epoch, end with the bits they would have had.

Two ranks cannot show it: a + b = b + a, however a sum is laid out.
"""

import functools
import os
import signal
from pathlib import Path

import pytest

from ffcv_r50.errors import FINISHED
from tests import ranks
from tests.conftest import Dataset


def on_nodes(each: int, more: ranks.Hook | None) -> None:
    """A hook: the launcher says that so many ranks are on a node."""
    os.environ["LOCAL_WORLD_SIZE"] = f"{each}"
    os.environ["LOCAL_RANK"] = f"{int(os.environ['RANK']) % each}"
    if more:
        more()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "nodes", "more"),
    [
        (4, 1, ("--training.norm_batch_size=2",)),
        (8, 1, ("--training.norm_batch_size=2",)),
        # Sums begin during the backward pass, among those of batch-norm that two neighbours share.
        (4, 2, ("--training.norm_batch_size=8",)),
        (8, 2, ("--training.norm_batch_size=4",)),
        (4, 2, ("--training.norm_batch_size=4", "--training.reduce_precision=bf16")),
    ],
)
def test_killed_in_the_middle_of_an_epoch(
    dataset: Dataset, tmp_path: Path, world_size: int, nodes: int, more: tuple[str, ...]
) -> None:
    def run(folder: Path, hook: ranks.Hook | None = None) -> ranks.Ended:
        arguments = ranks.arguments(dataset, folder, "--validation.batch_size=4", *more)
        on = functools.partial(on_nodes, world_size // nodes, hook)
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
