"""Rows from what steps and the progress say: counts, times, samples."""

import math
import time
from pathlib import Path

import numpy as np
import torch

from ffcv_r50 import recipe
from ffcv_r50.config import settings
from ffcv_r50.data.beton import Beton
from ffcv_r50.data.loader import SAMPLE, TrainLoader
from ffcv_r50.logs.metrics import Metrics
from ffcv_r50.logs.run_logs import FolderLogs
from ffcv_r50.recorder import Recorder
from ffcv_r50.run.progress import Progress
from ffcv_r50.training.metrics import StepValues
from tests import ranks
from tests.conftest import Dataset

STEPS, BATCH = 4, 16
VALIDATED = Metrics(1.0, 50.0, 80.0, 29)


class Start:
    """One start of a run of four steps an epoch, whose steps take a second and wait for a quarter."""

    def __init__(self, dataset: Dataset, folder: Path, *more: str) -> None:
        given = ["--training.batch_size=16", "--data.repeats=2", "--logging.every=2", *more]
        self.config = settings.load(dataset.arguments(folder, *given))
        beton = Beton(dataset.train)
        self.loader = TrainLoader(
            beton, seed=0, batch_size=BATCH, micro_batch_size=BATCH, repeats=2
        )
        folder.mkdir(exist_ok=True)
        self.warnings: list[str] = []
        logs = FolderLogs(folder, {}, self.warnings.append)
        device = torch.device("cpu")
        self.recorder = Recorder(self.config, self.loader, device, logs, time.monotonic())
        self.progress = Progress()

    def begin(self) -> None:
        self.recorder.rewind(self.progress)
        self.recorder.begin_epoch(self.progress)

    def step(self) -> None:
        number = self.progress.step
        self.progress.step += 1
        self.progress.train_seconds += 1.0
        self.progress.wait_seconds += 0.25
        each = torch.stack([torch.arange(BATCH) + BATCH * number, torch.arange(BATCH) % 2]).float()
        counts = [3.0, 5.0, 10.0 * (number > 0)]
        step = recipe.step(self.config, self.progress.epoch, number, STEPS)
        self.recorder.step(step, StepValues(0.5, 2.0, counts, each))


def test_rows_of_steps_and_epochs(dataset: Dataset, tmp_path: Path) -> None:
    start = Start(dataset, tmp_path)
    start.begin()
    for _ in range(STEPS):
        start.step()
    row = start.recorder.epoch(VALIDATED, {}, 7.0)
    rows = ranks.log(tmp_path, "steps.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["step"] for row in rows if "loss" in row] == [0, 2]
    text = (tmp_path / "steps.jsonl").read_text().splitlines()[2]
    assert '"images_per_second": 16.0, "data_wait_fraction": 0.25' in text
    assert (row.train_top_1, row.train_top_5) == (100 * 12 / 30, 100 * 20 / 30)
    assert (row.step_seconds, row.wait_seconds, row.eval_seconds) == (3.0, 1.0, 7.0)
    assert row.start_seconds > 0
    assert row.peak_memory_bytes > 1 << 20
    assert ranks.log(tmp_path)[0]["train_top_1"] == row.train_top_1
    assert not (tmp_path / "ledger").exists()


def test_epochs_whose_images_are_all_mixed_have_no_accuracy(
    dataset: Dataset, tmp_path: Path
) -> None:
    start = Start(dataset, tmp_path)
    start.begin()
    start.step()
    row = start.recorder.epoch(VALIDATED, {}, 7.0)
    assert row.train_top_1 is None
    assert row.train_top_5 is None


def test_a_killed_epoch_goes_on_with_what_its_checkpoint_says(
    dataset: Dataset, tmp_path: Path
) -> None:
    whole = Start(dataset, tmp_path / "whole", "--logging.samples=1")
    whole.begin()
    for _ in range(STEPS):
        whole.step()
    expected = whole.recorder.epoch(VALIDATED, {}, 7.0)

    killed = Start(dataset, tmp_path / "killed", "--logging.samples=1")
    killed.begin()
    killed.step()
    killed.step()
    with killed.recorder.saving():
        state = killed.recorder.state_dict()
        state["ledger"] = {name: t.clone() for name, t in state["ledger"].items()}  # to the disk
    killed.step()
    again = Start(dataset, tmp_path / "killed", "--logging.samples=1")
    again.recorder.load_state_dict(state)
    again.progress = Progress(step=2, train_seconds=2.0, wait_seconds=0.5)
    again.begin()
    again.step()
    again.step()
    row = again.recorder.epoch(VALIDATED, {}, 7.0)
    assert (row.train_top_1, row.train_top_5) == (expected.train_top_1, expected.train_top_5)
    steps = [ranks.log(tmp_path / name, "steps.jsonl") for name in ("whole", "killed")]
    assert steps[0] == steps[1]
    ledgers = [np.load(tmp_path / name / "ledger" / "epoch_1.npz") for name in ("whole", "killed")]
    loss, correct = np.full(70, math.nan), np.zeros(70, bool)
    for step in range(STEPS):
        for position, view in enumerate(whole.loader.views(0)[step]):
            loss[view & SAMPLE] = BATCH * step + position
            correct[view & SAMPLE] = position % 2
    for ledger in ledgers:
        np.testing.assert_array_equal(ledger["loss"], loss.astype(np.float16))
        np.testing.assert_array_equal(ledger["correct"], correct)
    # The next epoch begins anew.
    assert whole.recorder.state_dict()["ledger"]["loss"].isnan().all()


def test_a_state_of_an_older_version_has_none_of_it(dataset: Dataset, tmp_path: Path) -> None:
    start = Start(dataset, tmp_path, "--logging.samples=1")
    start.recorder.load_state_dict({})
    start.progress = Progress(step=2)
    start.begin()
    start.step()
    start.step()
    assert start.recorder.epoch(VALIDATED, {}, 7.0).train_top_1 == 100 * 6 / 20
    assert not start.warnings
