"""The log of a run as tables: ``log.csv`` for programs, ``log.md`` for people."""

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ffcv_r50.files import atomic_write
from ffcv_r50.logs import jsonl
from ffcv_r50.logs.console import duration

Cell = Callable[[Mapping[str, Any]], str]


def _percent(name: str) -> Cell:
    return lambda row: f"{row[name]:.2f}"


COLUMNS: Mapping[str, Cell] = {
    "epoch": lambda row: str(row["epoch"] + 1),
    "px": lambda row: str(row["resolution"]),
    "lr": lambda row: f"{row['lr']:.4f}",
    "loss": lambda row: f"{row['train_loss']:.4f}",
    "val loss": lambda row: f"{row['val_loss']:.4f}",
    "top-1 %": _percent("top_1"),
    "top-5 %": _percent("top_5"),
    "images/s": lambda row: f"{row['images_per_second']:,.0f}",
    "time": lambda row: duration(row["epoch_seconds"] + row["eval_seconds"]),
}
"""Of the table for people."""


def write(log: Path) -> None:
    """Write both beside ``log.jsonl``, from what stands in it.

    Raises:
        OSError: they cannot be written; those of before are still there.
    """
    rows = jsonl.read(log)
    for ending, text in ((".csv", as_csv(rows)), (".md", as_markdown(rows))):
        with atomic_write(log.with_suffix(ending)) as file:
            file.write(text.encode())


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Every number, a column each; empty where a row has none."""
    rows = list(rows)
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator=os.linesep)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """What a reader wants first: an epoch a line, averages of the weights behind the network."""
    rows = list(rows)
    names = dict.fromkeys(key for row in rows for key in row if key.endswith("_top_1"))
    averages = [name for name in names if name != "train_top_1"]
    head = [*COLUMNS, *(f"{name.removesuffix('_top_1')} top-1 %" for name in averages)]
    lines = [head, ["--:"] * len(head)]
    for row in rows:
        cells = list(COLUMNS.values()) + [_percent(name) for name in averages]
        lines.append([_text(cell, row) for cell in cells])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _text(cell: Cell, row: Mapping[str, Any]) -> str:
    """Of a table; empty where a row does not have what it needs."""
    try:
        return cell(row)
    except (LookupError, TypeError, ValueError):
        return ""
