"""Atomic writing, also under a kill."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from ffcv_r50.files import atomic_write


def test_the_name_holds_old_or_new_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write(b"old")
        assert not path.exists()
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_an_exception_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with contextlib.suppress(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_kill_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    code = (
        "import sys; from ffcv_r50.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); print('ready', flush=True); sys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    args = [sys.executable, "-c", code, str(tmp_path / "file")]
    with subprocess.Popen(args, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "file").exists()
