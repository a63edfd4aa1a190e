"""A step of a run again, compared with what the run recorded of it."""

import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ffcv_r50 import distributed, replay
from ffcv_r50.config import settings
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import STOPPED_AS_ASKED, RunFault, UserError
from tests import ranks
from tests.conftest import Dataset

AUGMENT = "--augment=[{trivial_augment: {}}, {mix: {mixup: 0.5}}]"
CLIPPED = ("--clipping.name=norm", "--clipping.at=0.01")


@pytest.fixture(scope="module")
def stopped(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped on two processes after step 6 of 12, in its second epoch."""
    folder = tmp_path_factory.mktemp("replay")
    words = ["--logging.every=1", "--checkpoint.every=2 steps", AUGMENT, *CLIPPED]
    ended = ranks.run(
        ranks.arguments(dataset, folder / "run", *words),
        folder,
        hook=ranks.at_step(6, signal.SIGTERM),
    )
    assert ended.codes == [STOPPED_AS_ASKED] * 2, ended.outputs
    return folder / "run"


def recorded(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]


def rebuilt(run: Path, number: int) -> tuple[replay.Replayed, Beton]:
    config = settings.load([f"--config={run / 'config.yaml'}"], needs_data=False)
    logging = config.logging.model_copy(update={"samples": True})
    config = config.model_copy(update={"logging": logging})
    with distributed.world(60) as world:
        return replay.rebuild(run, config, number, world)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 2, 6])
def test_the_step_is_the_one_that_the_run_took(stopped: Path, number: int) -> None:
    """From its start, and from states; on one process, where the run had two."""
    found, _ = rebuilt(stopped, number)
    row = recorded(stopped)[number]
    assert found.loss == pytest.approx(row["loss"], rel=1e-5)
    # One process sums in another order than two, and small batches make much of that.
    assert found.gradient_norm == pytest.approx(row["gradient_norm"], rel=5e-3)
    # Before clipping, all layers together.
    squares = sum(layer.gradient**2 for layer in found.layers)
    assert math.sqrt(squares) == pytest.approx(found.gradient_norm, rel=5e-4)
    assert found.losses.shape == (16,)
    assert torch.isfinite(found.losses).all()


@pytest.mark.slow
def test_the_program_prints_draws_and_changes_nothing(stopped: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    output = tmp_path / "sheet.png"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ffcv_r50.replay",
            str(stopped),
            "--step=6",
            "--images=5",
            f"--output={output}",
        ],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "its data are those that the run recorded" in done.stdout
    assert "step 6 (epoch 1, step 2 of it): loss" in done.stdout
    assert f"{output}: the 5 highest of all 16 images" in done.stdout
    with Image.open(output) as sheet:
        assert sheet.width > 300
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_other_data_than_recorded_are_a_fault(stopped: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    rows = recorded(run)
    rows[1]["fingerprint"] = "0" * 16
    (run / "steps.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(RunFault, match="step 1: its data are not those of the run"):
        rebuilt(run, 1)


@pytest.mark.slow
def test_a_step_behind_the_end(stopped: Path) -> None:
    with pytest.raises(UserError, match="--step=12: the run's last step is 11"):
        rebuilt(stopped, 12)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step=1"], "no run; pass its folder first"),
        (["nowhere", "--step=1"], "nowhere: holds no run, config.yaml is missing"),
        (["nowhere"], "step is missing"),
        (["nowhere", "--step=-1"], "--step: expected an integer at least 0, got -1"),
    ],
)
def test_a_wrong_command_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replay.replay(words)
