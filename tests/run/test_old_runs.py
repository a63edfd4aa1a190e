"""Run folders that older versions wrote continue to what those versions would have reached.

``old_runs.tar.xz`` is described in ``old_runs.md``. It stays for ever, and so do these tests.
"""

import os
import platform
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ffcv_r50.config import settings
from ffcv_r50.config.settings import Config
from ffcv_r50.data.beton import FIELD, HEADER, TYPE_IMAGE, TYPE_INT, metadata_dtype
from ffcv_r50.errors import BAD_INPUT, FINISHED
from ffcv_r50.run import checkpoint, versions
from tests import ranks
from tests.conftest import REPOSITORY, Dataset, Launch

ARCHIVE = Path(__file__).with_name("old_runs.tar.xz")
RUNS = ["between_epochs", "within_epoch"]

RECORDED = ("2.15.0+cu132", "Intel(R) Xeon(R) Processor", "AVX512")
"""torch, processor and instruction set that the runs were written with."""

TOLERANCE = 5e-3
"""On other processors: how far the trained weights may lie from the recorded ones, as a share of the
way that they went since the saved state. Other instruction sets (SSE 4.1 for AVX-512) and another
library of convolutions (torch's own for oneDNN) lead up to 1.1e-3 away; a learning rate that is one
percent higher, 1.9e-2 and more; one wrong sample in one step, 3e-2 and more."""


def processor() -> tuple[str, str]:
    """The processor's model and the instruction set that torch uses."""
    lines = (
        Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    )
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor()
    return model, torch.backends.cpu.get_cpu_capability()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The archive's content."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def arguments(old: Path, run: str, *more: str) -> list[str]:
    dataset = Dataset(old / "train.beton", old / "val.beton", old / "recipe.yaml")
    return dataset.arguments(old / run, *more)


def weights(path: Path) -> torch.Tensor:
    """All trained weights as one vector, of a state or of the finished network."""
    tensors = checkpoint.load_weights(path)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    trained = [tensors[name] for name in sorted(tensors) if not name.endswith(statistics)]
    return torch.cat([tensor.flatten().double() for tensor in trained])


def distance(old: Path, run: str, before: torch.Tensor) -> float:
    """Between what was reached and what is recorded, see :data:`TOLERANCE`."""
    recorded = weights(old / "finished" / "weights.pt")
    reached = weights(old / run / "weights.pt")
    return float((reached - recorded).norm() / (before - recorded).norm())


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_continues_to_what_it_would_have_reached(
    old: Path, run: str, launch: Launch
) -> None:
    before = weights(old / run / "checkpoints" / checkpoint.LAST)
    ended = launch(arguments(old, run))
    assert ended.codes == [FINISHED], ended.output
    assert "continuing after epoch 10 of 12" in ended.output
    if (torch.__version__, *processor()) == RECORDED:
        ranks.assert_same_weights(old / "finished", old / run)
        assert as_recorded(old, run) == ranks.log(old / "finished")
    else:
        assert_close(old, run, before)


def as_recorded(old: Path, run: str) -> list[dict[str, Any]]:
    """The log of a run, of which later versions say more."""
    [known] = {tuple(row) for row in ranks.log(old / "finished")}
    return [{key: row[key] for key in known} for row in ranks.log(old / run)]


def assert_close(old: Path, run: str, before: torch.Tensor) -> None:
    recorded, reached = ranks.log(old / "finished"), as_recorded(old, run)
    assert [row.keys() for row in reached] == [row.keys() for row in recorded]
    for key in ("epoch", "step", "lr", "resolution"):
        assert [row[key] for row in reached] == pytest.approx([row[key] for row in recorded])
    assert distance(old, run, before) < TOLERANCE


# ------------------------------------------------------------------- what the tolerance is worth


def another_processor(old: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """None of the recorded instruction set, where this processor had it."""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    return []


def another_learning_rate(old: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One percent more."""
    lr = settings.load([f"--config={old / 'recipe.yaml'}"], needs_data=False).schedule.lr
    table = str(lr.scaled(1.01).to_yaml()).replace("'", "")
    return [f"--schedule.lr={table}", "--resume.allow=schedule.lr"]


def a_wrong_sample(old: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which an old run cannot know before it has been continued once."""
    relabel(old)
    return []


def relabel(old: Path) -> None:
    """One of the training set's 70 images gets another label."""
    content = bytearray((old / "train.beton").read_bytes())
    kind = metadata_dtype([TYPE_IMAGE, TYPE_INT])
    metadata = np.frombuffer(content, kind, 70, HEADER.itemsize + 2 * FIELD.itemsize)
    metadata["f1"][0] = 1 - metadata["f1"][0]
    (old / "train.beton").write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "noticed"),
    [(another_processor, False), (another_learning_rate, True), (a_wrong_sample, True)],
)
def test_the_tolerance_tells_rounding_from_a_fault(
    old: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path, pytest.MonkeyPatch], list[str]],
    noticed: bool,
) -> None:
    before = weights(old / "within_epoch" / "checkpoints" / checkpoint.LAST)
    command = [sys.executable, str(REPOSITORY / "train_imagenet.py")]
    command += arguments(old, "within_epoch", *change(old, monkeypatch))
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == FINISHED, done.stdout + done.stderr
    assert (distance(old, "within_epoch", before) > TOLERANCE) == noticed


# ------------------------------------------------------------------------ what has come since then


class Newer(Config):
    """Settings of a later version."""

    novelty: float = 0.5
    """A setting that is new, and does something by default."""


def add_a_setting() -> None:
    settings.Config = Newer  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_new_setting_does_not_stop_an_old_run(old: Path, run: str) -> None:
    ended = ranks.run(arguments(old, run), old, ranks=1, hook=add_a_setting)
    assert ended.codes == [FINISHED], ended.outputs
    assert "continuing after epoch 10 of 12" in ended.outputs[0]
    assert "novelty: 0.5" in (old / run / "config.yaml").read_text()


@pytest.mark.slow
def test_an_old_run_knows_its_datasets_once_it_is_continued(old: Path) -> None:
    run = "within_epoch"
    assert ranks.run(arguments(old, run), old, ranks=1).codes == [FINISHED]
    relabel(old)
    refused = ranks.run(arguments(old, run), old, ranks=1)
    assert refused.codes == [BAD_INPUT], refused.outputs
    assert f"is not the dataset of the run in {old / run} (other content)" in refused.outputs[0]


def update_torch() -> None:
    current = versions.current
    versions.current = lambda: {**current(), "torch": "99.0"}


@pytest.mark.slow
def test_an_old_run_that_another_torch_continues_says_so(old: Path) -> None:
    run = "within_epoch"
    ended = ranks.run(arguments(old, run), old, ranks=1, hook=update_torch)
    assert ended.codes == [FINISHED], ended.outputs
    assert "note: continued with other versions than it was saved with (" in ended.outputs[0]
    assert f"torch {RECORDED[0]} -> 99.0" in ended.outputs[0]
