"""The event files, read by TensorBoard's own reader."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ffcv_r50.config import settings
from ffcv_r50.errors import BAD_INPUT, UserError
from ffcv_r50.logs.sinks.tensorboard import TensorBoard, TensorBoardOptions
from tests import ranks
from tests.conftest import Dataset


def row(number: int) -> dict[str, Any]:
    return {"step": number, "epoch": number / 4, "loss": number / 10, "fingerprint": "00ff"}


def epoch(number: int) -> dict[str, Any]:
    return {"epoch": number, "step": 4 * number + 4, "top_1": 10.0 * number, "train_top_1": None}


def scalars(folder: Path, kind: str, name: str) -> list[tuple[int, float]]:
    """Number and value of each point that TensorBoard shows."""
    reader = EventAccumulator(str(folder / "tensorboard" / kind))
    reader.Reload()
    return [(point.step, round(point.value, 4)) for point in reader.Scalars(name)]


def test_killed_and_continued_each_step_and_epoch_is_there_once(tmp_path: Path) -> None:
    first = TensorBoardOptions().build(tmp_path)
    first.rewind(0, 0)
    for number in range(7):
        first.step(number, row(number))
    first.epoch(0, epoch(0))
    first.epoch(1, epoch(1))  # killed before its state was saved, with nothing closed
    second = TensorBoardOptions().build(tmp_path)
    second.rewind(1, 4)
    for number in range(4, 9):
        second.step(number, row(number))
    second.epoch(1, epoch(1))
    second.close()
    assert scalars(tmp_path, "steps", "loss") == [(n, n / 10) for n in range(9)]
    assert scalars(tmp_path, "epochs", "top_1") == [(0, 0.0), (1, 10.0)]


def test_a_full_disk_is_caught_up_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    sink = TensorBoard(tmp_path / "tensorboard")
    sink.rewind(0, 0)
    sink.step(0, row(0))

    def full(self: Any, data: bytes) -> None:
        self._writer.write(data[:5])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "write", full)
        patch.setattr("threading.excepthook", lambda args: None)  # of TensorBoard's own thread
        with pytest.raises(OSError, match="No space left"):
            sink.step(1, row(1))
    sink.step(1, row(1))
    sink.step(2, row(2))
    sink.close()
    assert scalars(tmp_path, "steps", "loss") == [(n, n / 10) for n in range(3)]


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as raised:
        TensorBoardOptions().check()
    assert str(raised.value) == (
        "logging.sinks: tensorboard needs the package tensorboard, which is not installed; "
        "pip install 'ffcv_r50[tensorboard]'"
    )


def not_installed() -> None:
    """Nothing knows the package."""
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *more: (
        None if name == "tensorboard" else find(name, *more)
    )


@pytest.mark.slow
def test_a_run_without_the_package_ends_before_it_has_begun(
    dataset: Dataset, tmp_path: Path
) -> None:
    arguments = dataset.arguments(tmp_path / "run", "--logging.sinks=[{tensorboard: {}}]")
    ended = ranks.run(arguments, tmp_path, ranks=2, hook=not_installed)
    assert ended.codes == [BAD_INPUT] * 2, ended.outputs
    [line] = [line for line in "".join(ended.outputs).splitlines() if line.startswith("error")]
    assert line.startswith("error: logging.sinks: tensorboard needs the package tensorboard")
    assert not (tmp_path / "run").exists()


def test_the_same_sink_twice_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "x.yaml"
    recipe.write_text(
        "training: {epochs: 2, batch_size: 8}\nlogging: {sinks: [{tensorboard: {}}, {tensorboard: {}}]}\n"
        "schedule: {lr: {0: 0.1}, resolution: {0: 32}}\n"
    )
    with pytest.raises(UserError, match=r"logging\.sinks: tensorboard is there twice"):
        settings.load([f"--config={recipe}"], needs_data=False)
