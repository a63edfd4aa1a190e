"""Files from strangers: a short run of the fuzzer."""

import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fuzz

SHARED_MEMORY = Path("/dev/shm")


@pytest.mark.slow
@pytest.mark.parametrize("shared_memory", [False, True])
def test_nothing_breaks_but_the_file(tmp_path: Path, shared_memory: bool) -> None:
    if shared_memory and not os.access(SHARED_MEMORY, os.W_OK):
        pytest.skip("no /dev/shm here")
    command = [sys.executable, "-m", "benchmarks.fuzz", "--mutations=300", "--processes=1"]
    command += [f"--seed={int(shared_memory)}"]
    command += [f"--folder={SHARED_MEMORY if shared_memory else tmp_path}"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, env=os.environ | {"COLUMNS": "200"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = Counter[str]()
    for line in done.stdout.partition("mutations")[2].splitlines()[1:]:
        outcome, _, count = line.strip().rpartition(" ")
        counts[outcome.strip()] = int(count.replace(",", ""))
    assert counts.pop("all") == counts.total() == 300
    for kind in fuzz.Originals._fields:
        assert counts[f"{kind}: refused"] > 0, counts
    assert counts["dataset: decoded"] > 0
    assert counts["dataset: opened, some samples refused"] > 0


@pytest.mark.slow
def test_a_failure_is_one_and_its_process_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes of two mutations each: one raises, one dies, one hangs."""
    monkeypatch.setattr(fuzz, "CHUNK", 2)
    monkeypatch.setattr(fuzz, "TIME_LIMIT", 3.0)
    monkeypatch.setattr(fuzz, "work", _broken)
    outcomes = fuzz.fuzz(fuzz.Fuzzed(mutations=6, processes=2), tmp_path)
    assert outcomes == {
        "good": 3,
        "FAILED: the process ended with -9 (mutation 2)": 1,
        "FAILED: took more than 3 s (mutation 5)": 1,
        "FAILED: ValueError (mutation 1)": 1,
    }


def _broken(task: fuzz.Task, results: Any) -> None:
    for index in task.indices:
        results.send((index, None))
        if index == 2:
            os.kill(os.getpid(), 9)
        if index == 5:
            threading.Event().wait()
        results.send((index, "FAILED: ValueError" if index == 1 else "good"))
