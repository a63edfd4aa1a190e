"""Offline runs of Weights & Biases, read by the package's own reader."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ffcv_r50.errors import UserError
from ffcv_r50.logs.sinks.wandb import WandBOptions, records

OPTIONS = WandBOptions(project="digits", tags=("small", "fast"), mode="offline")


def row(number: int) -> dict[str, Any]:
    return {"step": number, "epoch": number / 4, "loss": number / 10, "fingerprint": "00ff"}


def epoch(number: int) -> dict[str, Any]:
    return {"epoch": number, "step": 4 * number + 4, "top_1": 10.0 * number, "train_top_1": None}


def scan(path: Path) -> list[bytes]:
    """The records of a file, as the package reads them."""
    from wandb.sdk.internal.datastore import DataStore

    found, store = [], DataStore()
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        found.append(data)
    store.close()
    return found


def history(folder: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    """The rows of all starts, and the run of each."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    rows, runs = [], []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in scan(path):
            record = Record.FromString(data)
            if record.HasField("history"):
                items = record.history.item
                row = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
                rows.append({key: row[key] for key in row if not key.startswith("_")})
            elif record.HasField("run"):
                runs.append(record.run)
    return rows, runs


def killed(folder: Path, steps: int) -> None:
    """A start that is killed while W&B still holds some of what it was given."""
    sink = OPTIONS.build(folder)
    sink.rewind(0, 0)
    for number in range(steps):
        sink.step(number, row(number))
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_service_of(pid: int | None) -> None:
    """W&B's own process writes what it has of a run whose process is gone, and then ends."""
    parent, deadline = f"--pid\0{pid}\0".encode(), time.monotonic() + 60
    while any(parent in command_line(path) for path in Path("/proc").glob("[0-9]*/cmdline")):
        assert time.monotonic() < deadline, "W&B's process does not end"
        time.sleep(0.1)  # it is no child, whose end could be waited for


def command_line(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
def test_killed_and_continued_it_is_one_run_with_each_row_once(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("training: {epochs: 3}\n")
    steps = 600  # more than a block
    start = multiprocessing.get_context("spawn").Process(target=killed, args=(tmp_path, steps))
    start.start()
    start.join(60)
    assert start.exitcode == -signal.SIGKILL
    wait_for_service_of(start.pid)
    before, _ = history(tmp_path)
    assert 0 < len(before) < steps
    sink = OPTIONS.build(tmp_path)
    had = sink.rewind(0, steps - 10)
    assert had == (0, len(before))
    for number in range(*had[1:], steps):
        sink.step(number, row(number))
    sink.epoch(0, epoch(0))
    assert sink.rewind(0, steps - 10) == (1, steps)  # a rollback
    sink.step(steps - 10, row(steps - 10))
    sink.close()
    rows, runs = history(tmp_path)
    assert [entry for entry in rows if "step" in entry] == [
        {"step": number, "steps/loss": number / 10} for number in range(steps)
    ]
    assert [entry for entry in rows if "epoch" in entry] == [{"epoch": 0, "epochs/top_1": 0.0}]
    assert {run.run_id for run in runs} == {(tmp_path / "wandb" / "id").read_text()}
    assert [(run.project, list(run.tags)) for run in runs][-1] == ("digits", ["small", "fast"])
    for path in tmp_path.glob("wandb/offline-run-*/*.wandb"):
        assert [*records(path.read_bytes())] == scan(path)


def test_a_run_that_is_online_goes_on_where_the_server_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    class Run:
        """Of a server that has ten steps and one epoch."""

        def __init__(self, **asked: Any) -> None:
            self.asked = asked
            self.summary = {"step": 9, "epoch": 0, "steps/loss": 0.9}
            self.rows: list[dict[str, Any]] = []

        def define_metric(self, name: str, **more: Any) -> None:
            pass

        def log(self, values: dict[str, Any]) -> None:
            if values.get("step") == 11:
                raise ConnectionError("the server is gone")
            self.rows.append(values)

    made: list[Run] = []

    def init(**asked: Any) -> Run:
        made.append(Run(**asked))
        return made[-1]

    monkeypatch.setattr(wandb, "init", init)
    sink = WandBOptions(project="digits").build(tmp_path)
    assert sink.rewind(1, 8) == (1, 10)
    sink.step(9, row(9))
    sink.step(10, row(10))
    with pytest.raises(ConnectionError):
        sink.step(11, row(11))
    sink.step(12, row(12))  # by another connection
    assert [run.rows for run in made] == [
        [{"step": 10, "steps/loss": 1.0}],
        [{"step": 12, "steps/loss": 1.2}],
    ]
    asked = [(run.asked["id"], run.asked["resume"], run.asked["mode"]) for run in made]
    assert asked == [((tmp_path / "wandb" / "id").read_text(), "allow", "online")] * 2


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ffcv_r50\[wandb\]'"):
        WandBOptions().check()
