"""Staging: copied once, verified, used again, room checked, and waited for without time-outs."""

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ffcv_r50.errors import UserError
from ffcv_r50.run import staging
from tests.conftest import Dataset, Launch


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "shared" / "train.beton"
    path.parent.mkdir()
    path.write_bytes(os.urandom(100_000))
    Path(f"{path}.json").write_text("{}")
    return path


def stage(source: Path, folder: Path) -> tuple[Path, list[str]]:
    said: list[str] = []
    (copy,) = staging.stage([str(source)], str(folder), said.append)
    return Path(copy), said


def test_a_copy_is_made_once_and_used_again(source: Path, tmp_path: Path) -> None:
    copy, said = stage(source, tmp_path / "disk" / "deep")
    assert copy.read_bytes() == source.read_bytes()
    assert Path(f"{copy}.json").read_text() == "{}"
    assert [line.split(" on ")[0] for line in said] == [f"staged {source}"]
    before = copy.stat().st_ino
    again, said = stage(source, tmp_path / "disk" / "deep")
    assert (again, again.stat().st_ino, said) == (copy, before, [])


def test_a_damaged_copy_is_made_again(source: Path, tmp_path: Path) -> None:
    copy, _ = stage(source, tmp_path)
    with open(copy, "r+b") as file:  # the same size: only the checksum tells
        file.write(b"damaged")
    again, said = stage(source, tmp_path)
    assert again.read_bytes() == source.read_bytes()
    assert "is not what was staged; copying it again" in said[0]


def test_a_changed_source_is_copied_again(source: Path, tmp_path: Path) -> None:
    stage(source, tmp_path)
    source.write_bytes(b"new")
    copy, _ = stage(source, tmp_path)
    assert copy.read_bytes() == b"new"


def test_what_a_killed_process_left_is_removed(source: Path, tmp_path: Path) -> None:
    copy, _ = stage(source, tmp_path)
    left = tmp_path / f".{copy.name}.4711.tmp"
    left.write_bytes(b"half")
    copy.unlink()
    stage(source, tmp_path)
    assert not left.exists()


def test_files_of_one_name_do_not_meet(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / source.name
    other.parent.mkdir()
    other.write_bytes(b"other")
    first, second = staging.stage([str(source), str(other)], str(tmp_path))
    assert Path(first).read_bytes() == source.read_bytes()
    assert Path(second).read_bytes() == b"other"


class Usage(NamedTuple):
    free: int


def test_room_is_checked_before(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100_500))
    with pytest.raises(UserError, match=r"0.0 GB free, .*make room, choose another disk"):
        stage(source, tmp_path / "disk")
    assert not list((tmp_path / "disk").glob("*.beton"))


def test_a_copy_that_differs_is_not_used(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_checksum", lambda path: 0)
    with pytest.raises(UserError, match=r"differs from .* after copying"):
        stage(source, tmp_path / "disk")
    assert not list((tmp_path / "disk").glob("*.beton"))


@pytest.mark.parametrize("missing", ["source", "folder"])
def test_what_cannot_be_opened_is_named(source: Path, tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "file" / "x"
    if missing == "source":
        source = tmp_path / "nowhere.beton"
        folder = tmp_path
    else:
        (tmp_path / "file").write_text("not a folder")
    expected = {"source": "nowhere.beton: cannot be read", "folder": "data.stage_dir=.*/file/x"}
    with pytest.raises(UserError, match=expected[missing]):
        stage(source, folder)


def test_the_sidecar_follows_its_source(source: Path, tmp_path: Path) -> None:
    copy, _ = stage(source, tmp_path)
    Path(f"{source}.json").write_text('{"new": 1}')
    Path(f"{copy}.json").unlink()
    stage(source, tmp_path)
    assert Path(f"{copy}.json").read_text() == '{"new": 1}'
    Path(f"{source}.json").unlink()
    stage(source, tmp_path)
    assert not Path(f"{copy}.json").exists()


def test_only_one_process_of_a_node_reads_the_copy(source: Path, tmp_path: Path) -> None:
    copy, _ = stage(source, tmp_path)
    copy.unlink()
    assert staging.stage([str(source)], str(tmp_path), copies=False) == [str(copy)]
    assert not copy.exists(), "another one's work"


def test_names_of_any_bytes(tmp_path: Path) -> None:
    source = tmp_path / os.fsdecode(b"a\xff[1].beton")
    source.write_bytes(b"whole")
    copy, _ = stage(source, tmp_path / "disk")
    assert copy.read_bytes() == b"whole"
    left = copy.with_name(f".{copy.name}.4711.tmp")
    left.write_bytes(b"half")
    copy.unlink()
    stage(source, tmp_path / "disk")
    assert not left.exists()


def test_runs_wait_for_the_one_that_copies(source: Path, tmp_path: Path) -> None:
    copy, _ = stage(source, tmp_path)
    copy.unlink()
    waited = threading.Event()
    said: list[Any] = []
    with open(f"{copy}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run copies

        def work() -> None:
            said.append(stage(source, tmp_path))
            waited.set()

        thread = threading.Thread(target=work)
        thread.start()
        assert not waited.wait(0.3)
        assert not copy.exists()
    thread.join(30)
    assert said[0][0].read_bytes() == source.read_bytes()


# Rank 1 copies for three seconds; rank 0's collectives give up after two.
RANK = """
import sys, time
from ffcv_r50 import distributed
from ffcv_r50.run import staging
with distributed.world(2) as world:
    original = staging._stage_one
    def slow(*arguments):
        if world.rank == 1:
            time.sleep(3)
        return original(*arguments)
    staging._stage_one = slow
    staging.POLL_SECONDS = 0.2
    staging.stage([sys.argv[1]], sys.argv[2] + str(world.rank))
"""


@pytest.mark.slow
def test_a_slow_node_does_not_run_into_a_time_out(source: Path, tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "SLURM_JOB_ID": "4712",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_LOCALID": "0",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(source), str(tmp_path / "disk")],
            env=environment | {"SLURM_PROCID": f"{rank}", "SLURM_NODEID": f"{rank}"},
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=60) for rank in ranks] == [0, 0]
    assert all(len(list((tmp_path / f"disk{rank}").glob("*.beton"))) == 1 for rank in range(2))


@pytest.mark.slow
def test_a_run_reads_the_copies(dataset: Dataset, launch: Launch, tmp_path: Path) -> None:
    short = tmp_path / "short.beton"
    short.write_bytes(dataset.val.read_bytes()[:-100])
    arguments = [w for w in dataset.arguments(tmp_path / "run") if "val_dataset" not in w]
    more = [f"--data.val_dataset={short}", f"--data.stage_dir={tmp_path}/disk"]
    result = launch([*arguments, *more], world_size=2)
    assert result.codes == [2, 2]
    assert f"error: {tmp_path}/disk/short-" in result.output, "the file that it opened"
    assert len(list((tmp_path / "disk").glob("train-*.beton"))) == 1


# ---------------------------------------------------------------------- folders that all may write to


def test_a_link_in_the_place_of_the_lock_is_not_followed(source: Path, tmp_path: Path) -> None:
    copy, _ = stage(source, tmp_path / "disk")
    precious = tmp_path / "precious"
    precious.write_text("precious")
    lock = copy.with_name(f"{copy.name}.lock")
    lock.unlink()
    lock.symlink_to(precious)
    with pytest.raises(
        UserError, match=rf"^data.stage_dir={tmp_path}/disk on .*: {lock}: Too many"
    ):
        stage(source, tmp_path / "disk")
    assert precious.read_text() == "precious"


def test_somebody_elses_copy_is_not_believed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, _ = stage(source, tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: copy.stat().st_uid + 1)
    _, said = stage(source, tmp_path)
    assert [line.split(" on ")[0] for line in said] == [f"staged {source}"]
