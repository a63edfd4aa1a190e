"""The benchmark of the watchdog runs, and its rows have the promised keys."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ffcv_r50.errors import BAD_INPUT
from tests.conftest import REPOSITORY

KEYS = {
    "ranks",
    "start_seconds",
    "requests_per_second",
    "values_per_second",
    "megabytes_per_second",
    "watchdog_cpu_percent",
    "store_cpu_percent",
    "named_seconds",
    "all_values_per_second",
    "all_megabytes_per_second",
    "all_store_cpu_percent",
}
COMMAND = [sys.executable, "-m", "benchmarks.watchdog"]


@pytest.mark.slow
def test_the_watchdog_benchmark(tmp_path: Path) -> None:
    """On a few ranks; that the dead one is named to all others is part of it."""
    file = tmp_path / "rows.json"
    options = ["--ranks", "2,6", "--seconds", "1", "--timeout", "5", "--json", str(file)]
    done = subprocess.run(
        [*COMMAND, *options], cwd=REPOSITORY, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text())
    assert [row["ranks"] for row in rows] == [2, 6]
    for row in rows:
        assert row.keys() == KEYS
        assert all(row[key] > 0 for key in KEYS - {"all_store_cpu_percent"})
        assert row["all_values_per_second"] == row["ranks"] * (row["ranks"] + 1)
    assert "dead rank named, s" in done.stdout


@pytest.mark.slow
def test_one_rank_has_no_watchdog() -> None:
    done = subprocess.run(
        [*COMMAND, "--ranks", "8,1"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == BAD_INPUT
    assert (
        "error: command line: --ranks: expected numbers of at least 2, such as 8,64\n"
        in done.stderr
    )
