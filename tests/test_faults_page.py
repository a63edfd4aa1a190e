"""The page of faults: each row names a test that exists."""

import re

import pytest

from tests.conftest import REPOSITORY

ROWS = [
    line
    for line in (REPOSITORY / "docs" / "faults.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| what happens")
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_each_row_is_backed_by_a_test(row: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.split("|")[-2])
    assert named
    for file, name in named:
        assert f"\ndef {name}(" in (REPOSITORY / file).read_text(), name
