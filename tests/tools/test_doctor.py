"""The doctor: what it finds on a healthy machine, and that each thing wrong is said with advice."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from ffcv_r50.data import jpeg
from ffcv_r50.errors import UserError
from ffcv_r50.tools import doctor
from ffcv_r50.tools.doctor import Finding
from tests.conftest import Dataset


class Usage(NamedTuple):
    free: float


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DECODE_SECONDS", 0.1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(50e9))


def test_a_healthy_machine(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = doctor.examine([f"--data={dataset.train}", f"--folder={tmp_path / 'new' / 'run'}"])
    printed = " ".join(capsys.readouterr().out.split())
    assert code == 0, printed
    assert "70 images; " in printed
    assert "50 GB free" in printed
    assert torch.__version__.split("+")[0] in printed
    assert not (tmp_path / "new").exists(), "it looks, it makes nothing"


def test_what_is_wrong_is_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2.5e9))

    def no_library() -> None:
        raise UserError("install libturbojpeg0")

    monkeypatch.setattr(jpeg, "library", no_library)
    monkeypatch.chdir(tmp_path)  # a long path would be broken over two lines of the table
    assert doctor.examine(["--data=nowhere.beton", "--folder=."]) == 1
    printed = capsys.readouterr().out
    assert "install libturbojpeg0" in printed
    assert "nowhere.beton" in printed
    assert "2.5 GB free" in printed
    assert "make room" in printed


def test_other_versions_on_a_node_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    doctor._print(
        [("n1", {"versions": Finding("torch 2.15")}), ("n2", {"versions": Finding("torch 2.14")})]
    )
    printed = capsys.readouterr().out
    assert printed.count("install the same versions on all nodes") == 2
    assert "rank 1 (n2)" in printed


@pytest.mark.parametrize("error", [UserError("mine"), RuntimeError("theirs")])
def test_no_check_ends_the_others(error: Exception) -> None:
    def check() -> Finding:
        raise error

    assert str(error) in doctor._guarded(check).advice


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--foo=1", "command line: --foo is not a setting; --help lists the settings"),
        ("--timeout=-3", "command line: --timeout: expected an integer at least 1 and at most 1000000, got -3"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line(word: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        doctor.examine([word])
    assert str(caught.value) == message


# Rank 1's clock is five seconds ahead.
RANK = """
import os, sys, time
from ffcv_r50.tools import doctor
real = time.time
if os.environ["RANK"] == "1":
    time.time = lambda: real() + 5
doctor.main()
"""


@pytest.mark.slow
def test_several_processes_sum_and_compare_their_clocks() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "PATH": os.environ["PATH"],
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env=environment | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed, nothing = (rank.communicate(timeout=120)[0] for rank in ranks)
    assert [rank.returncode for rank in ranks] == [1, 1], "the clocks"
    assert nothing == ""
    assert "+5.0 s from rank 0's" in printed
    assert "64 MiB over gloo: " in printed
    assert "GB/s" in printed
