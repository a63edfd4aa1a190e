"""The log as tables: every number in one, what people want first in the other."""

import csv
from pathlib import Path
from typing import Any

from ffcv_r50.logs import jsonl, tables

ROW: dict[str, Any] = {
    "epoch": 0,
    "step": 4,
    "lr": 0.1,
    "resolution": 160,
    "train_loss": 1.5,
    "val_loss": 1.25,
    "top_1": 50.0,
    "top_5": 75.5,
    "ema_top_1": 51.0,
    "train_top_1": None,
    "images_per_second": 1234.5,
    "epoch_seconds": 100.0,
    "eval_seconds": 5.0,
}


def test_they_are_made_of_the_log_whoever_wrote_it(tmp_path: Path) -> None:
    older = {key: ROW[key] for key in ("epoch", "lr", "top_1")}
    log = tmp_path / "log.jsonl"
    for row in (older, {**ROW, "epoch": 1}):
        jsonl.append(log, row)
    tables.write(log)
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["top_1"]) for row in rows] == [50.0, 50.0]
    assert rows[0]["train_loss"] == rows[1]["train_top_1"] == ""
    assert set(rows[0]) == set(ROW)
    head, line, first, second = (tmp_path / "log.md").read_text().splitlines()
    assert head == (
        "| epoch | px | lr | loss | val loss | top-1 % | top-5 % | images/s | time | ema top-1 % |"
    )
    assert line.count("--:") == 10
    assert first == "| 1 |  | 0.1000 |  |  | 50.00 |  |  |  |  |"
    assert second == (
        "| 2 | 160 | 0.1000 | 1.5000 | 1.2500 | 50.00 | 75.50 | 1,234 | 1:45 | 51.00 |"
    )


def test_no_log_is_an_empty_table(tmp_path: Path) -> None:
    tables.write(tmp_path / "log.jsonl")
    assert (tmp_path / "log.csv").read_text() == "\n"
