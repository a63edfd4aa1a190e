"""The log file and what the console says."""

import json
import os
from pathlib import Path

import pytest

from ffcv_r50.logs import console, jsonl
from ffcv_r50.logs.run_logs import FolderLogs


def test_rows_come_back_and_rewinding_drops_later_epochs(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert jsonl.read(path) == []
    jsonl.rewind(path, 1)
    assert not path.exists()
    for epoch in range(4):
        jsonl.append(path, {"epoch": epoch, "lr": 0.5})
    with open(path, "a") as file:
        file.write('{"epoch": 4, "l')  # killed while it wrote
    jsonl.rewind(path, 2)
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [0, 1]


def test_rows_of_somebody_else_do_not_stop_a_run(tmp_path: Path) -> None:
    rows = [{}, {"epoch": "0"}, {"epoch": None}, {"epoch": -1}, {"epoch": 0, "top_1": "x"}, [7]]
    text = "".join(f"{json.dumps(row)}\n" for row in rows) + "[" * 100_000 + "\n"
    for name in ("log.jsonl", "steps.jsonl"):
        (tmp_path / name).write_text(text)
    logs = FolderLogs(tmp_path, {}, pytest.fail)
    logs.rewind(2, 2)
    logs.close()
    assert (tmp_path / "log.jsonl").read_text() == '{"epoch": 0, "top_1": "x"}\n'
    assert (tmp_path / "steps.jsonl").read_text() == ""
    assert jsonl.last_row(tmp_path / "log.jsonl") == {"epoch": 0}


def test_a_row_is_on_the_disk_when_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, str]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((path.name, path.read_text()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    jsonl.append(tmp_path / "log.jsonl", {"epoch": 0})
    assert synced == [("log.jsonl", '{"epoch": 0}\n')]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0:00"), (75, "1:15"), (3599.6, "1:00:00"), (36610, "10:10:10"), (float("inf"), "?")],
)
def test_durations(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


def test_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    speaker = console.Console(enabled=True)
    with speaker.bar("epoch 1/2", 40) as bar:
        for done, seconds in ((1, 4.0), (2, 11.0), (3, 12.0)):
            now[0] = 100 + seconds
            bar.update(done, "loss 1.0")
    speaker.warn("look")
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/2  2/40  loss 1.0  3:29 left",
        "warning: look",
    ]


def test_names_from_files_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.Console(enabled=True).say("class \x1b]0;title\x07\x1b[2J\nowl")
    assert capsys.readouterr().out == "class \\x1b]0;title\\x07\\x1b[2J owl\n"


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    speaker = console.Console(enabled=False)
    speaker.say("hello")
    with speaker.bar("epoch", 2) as bar:
        bar.update(1, "")
    assert capsys.readouterr().out == ""
