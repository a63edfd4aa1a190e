"""The table of all runs below a folder."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ffcv_r50 import runs
from ffcv_r50.run.run_folder import RunFolder


def make(path: Path, state: str = "finished", reason: str = "", rows: int = 2) -> Path:
    """A run folder as a run leaves it, of three epochs."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("training: {epochs: 3}\n")
    (path / "status.json").write_text(json.dumps({"state": state, "reason": reason}))
    (path / "lock").touch()
    lines = [row(epoch) for epoch in range(rows)]
    (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def row(epoch: int) -> dict[str, Any]:
    """70.5 %, then 60.5, 50.5; a minute each."""
    return {
        "epoch": epoch,
        "top_1": 70.5 - 10 * epoch,
        "images_per_second": 1234.5,
        "epoch_seconds": 50.0,
        "eval_seconds": 10.0,
    }


def test_a_run_tells_how_far_it_is(tmp_path: Path) -> None:
    make(tmp_path / "a", "running")
    lost = runs.read(tmp_path / "a")  # it was killed
    assert (lost.state, lost.epoch, lost.epochs) == ("lost", 2, 3)
    assert (lost.top_1, lost.best, lost.seconds_left) == (60.5, 70.5, None)
    assert lost.words == "its processes ended without a word"
    folder = RunFolder(str(tmp_path / "a"))
    try:
        held = runs.read(tmp_path / "a")
        assert (held.state, held.seconds_left) == ("running", 60.0)
        assert held.words.startswith("wrote 0:0")
    finally:
        folder.release()


def test_looking_leaves_the_lock_to_the_next_start(tmp_path: Path) -> None:
    make(tmp_path / "a", "running")
    runs.read(tmp_path / "a")
    RunFolder(str(tmp_path / "a")).release()


@pytest.mark.parametrize("file", ["config.yaml", "status.json", "log.jsonl", "lock"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"[1]", b'{"a": 1', None])
def test_a_folder_with_a_broken_file_is_shown(
    tmp_path: Path, file: str, content: bytes | None
) -> None:
    broken = make(tmp_path / "a", "failed", "UserError: no\ndisk") / file
    broken.unlink()
    if content is not None:
        broken.write_bytes(content)
    state = runs.read(tmp_path / "a")
    assert state.epochs == (None if file == "config.yaml" else 3)
    if file != "status.json":
        assert (state.state, state.words) == ("failed", "UserError: no disk")


def test_settings_that_multiply_are_not_read(tmp_path: Path) -> None:
    """Ten tables of a line each that are nine times the one before: 9^10 keys."""
    run = make(tmp_path / "a")
    lines = ["a0: &a0 {b: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{f'*a{i - 1}, ' * 9}]}}" for i in range(1, 11)]
    with open(run / "config.yaml", "a") as file:
        file.write("\n" + "\n".join(lines))
    assert runs.read(run).epochs is None


def test_runs_inside_of_runs_are_not_searched_for(tmp_path: Path) -> None:
    make(tmp_path / "b" / "2")
    make(tmp_path / "b" / "1")
    make(tmp_path / "a")
    make(tmp_path / "a" / "checkpoints" / "x")
    names = [path.relative_to(tmp_path).as_posix() for path in runs.find(tmp_path)]
    assert names == ["a", "b/1", "b/2"]
    assert [*runs.find(tmp_path / "b" / "1")] == [tmp_path / "b" / "1"]


def program(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ffcv_r50.runs", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"COLUMNS": "80"},
    )


@pytest.mark.slow
def test_the_program_prints_once_where_there_is_no_terminal(tmp_path: Path) -> None:
    make(tmp_path / "good")
    make(tmp_path / "bad", "failed", "NotFinite: nan")
    shown = program(str(tmp_path))
    assert shown.returncode == 0, shown.stderr
    assert [line.split() for line in shown.stdout.splitlines()] == [
        ["run", "state", "epoch", "top-1", "best", "images/s", "left", "last", "words"],
        ["bad", "failed", "2/3", "60.50", "70.50", "1,234", "NotFinite:", "nan"],
        ["good", "finished", "2/3", "60.50", "70.50", "1,234"],
    ]
    assert max(map(len, shown.stdout.splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "command line: no folder; pass one that holds runs, such as runs"),
        (["nowhere"], "nowhere: no such folder; pass one that holds runs"),
        ([".", "--evry=2"], "command line: --evry: no such option; there is --every"),
    ],
)
def test_a_wrong_command_line_is_one_line(words: list[str], message: str) -> None:
    ended = program(*words)
    assert (ended.returncode, ended.stderr) == (2, f"error: {message}\n")


@pytest.mark.slow
def test_on_a_terminal_it_follows_until_it_is_interrupted(tmp_path: Path) -> None:
    make(tmp_path / "first")
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "ffcv_r50.runs", str(tmp_path), "--every=0.1"]
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, stdin=terminal)
    os.close(terminal)

    def shown_until(text: str) -> None:
        seen = ""
        while text not in seen:  # pytest-timeout ends a wait that is in vain
            seen += os.read(screen, 4096).decode(errors="replace")

    try:
        shown_until("first")
        make(tmp_path / "second")
        shown_until("second")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        os.close(screen)


def test_it_starts_without_torch() -> None:
    """Which alone would take it two seconds."""
    code = "import sys, ffcv_r50.runs; print({'torch', 'numba', 'torchvision'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr
