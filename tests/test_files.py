"""Atomic writing, also under a kill."""

import contextlib
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ffcv_r50.config import settings
from ffcv_r50.data import samples
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import UserError
from ffcv_r50.files import (
    YAML_BYTES,
    atomic_write,
    check_archive,
    read_json,
    read_settings,
)
from ffcv_r50.run import checkpoint


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


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "file").symlink_to("precious")
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "file").is_symlink()


@pytest.mark.timeout(60)
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (read_json, read_settings, Beton, checkpoint.load_weights):
        with pytest.raises((OSError, UserError), match="Not a regular file"):
            read(tmp_path / "pipe")
    os.rename(tmp_path / "pipe", tmp_path / "x.beton.samples.gz")
    with pytest.raises(UserError, match="Not a regular file"):
        list(samples.read(tmp_path / "x.beton", 1) or ())


def archive(path: Path, compression: int, again: int) -> None:
    """An archive of a member of zeros, listed more than once."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("zeros", bytes(1 << 20))
        file.filelist.extend(again * file.filelist)


@pytest.mark.parametrize(
    ("compression", "again", "refused"),
    [
        (zipfile.ZIP_STORED, 0, False),
        (zipfile.ZIP_STORED, 1, True),
        (zipfile.ZIP_DEFLATED, 0, True),
    ],
)
def test_an_archive_holds_no_more_than_its_file(
    tmp_path: Path, compression: int, again: int, refused: bool
) -> None:
    archive(tmp_path / "x.zip", compression, again)
    with open(tmp_path / "x.zip", "rb") as file:
        if not refused:
            check_archive(file)
            assert file.tell() == 0
            return
        with pytest.raises(ValueError, match=r"its [0-9,]+ bytes say they hold [0-9,]+"):
            check_archive(file)


def test_settings_have_an_end(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(" " * YAML_BYTES)
    assert len(read_settings(path)) == YAML_BYTES
    path.write_text(" " * (YAML_BYTES + 1))
    with pytest.raises(ValueError, match="has more than 1 MiB"):
        read_settings(path)
    with pytest.raises(UserError, match=r"config\.yaml: has more than 1 MiB"):
        settings.load([f"--config={path}"], needs_data=False)
