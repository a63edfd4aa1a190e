"""Files that change under a run, and what else no check at the start can see: a line, a code, a status."""

import functools
import os
import shutil
from pathlib import Path

import pytest
import torch
import torchvision

from ffcv_r50 import trainer
from ffcv_r50.config import settings
from ffcv_r50.errors import FAULT, FINISHED, UserError
from tests import ranks
from tests.conftest import Dataset


def shorten(path: Path) -> None:
    """As another file that is copied over it, and is not there yet."""
    os.truncate(path, 4096)


@pytest.mark.slow
def test_a_dataset_that_becomes_shorter_ends_the_run_and_is_recorded(
    dataset: Dataset, tmp_path: Path
) -> None:
    """Mapped into memory it would end the processes by SIGBUS, and the status would say "running"."""
    copy = Path(shutil.copy(dataset.train, tmp_path))
    shutil.copy(f"{dataset.train}.json", tmp_path)
    moved = dataset._replace(train=copy)
    arguments = ranks.arguments(moved, tmp_path / "run")
    hook = functools.partial(ranks.before_step, functools.partial(shorten, copy), 1)
    ended = ranks.run(arguments, tmp_path, ranks=1, hook=hook)
    assert ended.codes == [FAULT], ended.outputs
    *_, last = ended.outputs[0].splitlines()
    assert last.startswith(f"error: {copy}: has become shorter since it was opened: sample ")
    assert "Traceback" not in ended.outputs[0]
    status = ranks.status(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == ("failed", FAULT)
    assert status["reason"] == last.replace("error: ", "RunFault: ")
    shutil.copy(dataset.train, copy)
    again = ranks.run(arguments, tmp_path, ranks=1)
    assert again.codes == [FINISHED], again.outputs


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_diverged_are_not_evaluated(
    dataset: Dataset, tmp_path: Path, bad: float
) -> None:
    weights = torchvision.models.shufflenet_v2_x0_5(num_classes=3).state_dict()
    weights["conv5.1.running_var"][7] = bad
    torch.save(weights, tmp_path / "bad.pt")
    config = settings.load(
        [
            f"--config={dataset.recipe}",
            f"--data.val_dataset={dataset.val}",
            "--training.eval_only=1",
            f"--checkpoint={tmp_path / 'bad.pt'}",
            f"--logging.folder={tmp_path / 'run'}",
        ]
    )
    expected = rf"^--checkpoint={tmp_path}/bad\.pt: its conv5\.1\.running_var has values that are "
    with pytest.raises(UserError, match=expected):
        trainer.run(config)
    assert not (tmp_path / "run").exists()
