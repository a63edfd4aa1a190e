"""Atomic writing, also under a kill."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_content_is_on_the_disk_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renamed before it is synced, a file may be empty after a power failure."""
    done: list[tuple[str, str, int]] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        done.append(("fsync", path, os.path.getsize(path) if os.path.isfile(path) else 0))
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        done.append(("replace", str(target), os.path.getsize(source)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write(b"new")
    temporary = str(tmp_path / f".file.{os.getpid()}.tmp")
    folder = str(tmp_path)
    assert done == [("fsync", temporary, 3), ("replace", str(path), 3), ("fsync", folder, 0)]
