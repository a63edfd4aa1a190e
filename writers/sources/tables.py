"""Tables of paths and labels, as text or Parquet, read one row after the other."""

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from ffcv_r50.errors import UserError
from ffcv_r50.files import parse_json
from writers.sources import arrow

SUFFIXES = (".csv", ".jsonl", ".parquet", ".txt")


class Row(NamedTuple):
    """One image."""

    path: str
    label: str
    """A class name, or a number as text."""


def rows(table: Path) -> Iterator[Row]:
    """The rows of a table, by the suffix of its name.

    ``.csv`` and ``.parquet`` have columns ``path`` and ``label``, ``.jsonl`` an object with these keys a
    line, ``.txt`` a path and a label a line, with blanks between.

    Raises:
        UserError: another suffix, no such file, or a row that is not of this form.
    """
    if table.suffix not in SUFFIXES:
        raise UserError(f"{table}: expected a name that ends in {', '.join(SUFFIXES)}")
    number = 0
    try:
        for row in map(_row, _entries(table)):
            yield row
            number += 1
    except (ValueError, csv.Error) as error:
        raise UserError(f"{table}, row {number + 1:,}: {error}") from error


def _entries(table: Path) -> Iterator[Mapping[str, Any]]:
    if table.suffix == ".parquet":
        yield from arrow.rows(table, ["path", "label"])
        return
    # Paths may be any bytes, as file names are.
    with open(table, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        if table.suffix == ".csv":
            yield from _csv_entries(file)
        elif table.suffix == ".jsonl":
            yield from (parse_json(line) for line in file if line.strip())
        else:
            yield from (_words(line) for line in file if line.strip())


def _csv_entries(file: TextIO) -> Iterator[Mapping[str, Any]]:
    reader = csv.DictReader(file)
    columns = reader.fieldnames or []
    if not {"path", "label"} <= set(columns):
        raise ValueError(
            f"the header has the columns {', '.join(columns)}; call two of them path and label"
        )
    yield from reader


def _words(line: str) -> Mapping[str, Any]:
    path, _, label = line.strip().replace("\t", " ").rpartition(" ")
    return {"path": path.rstrip(), "label": label}


def _row(entry: Any) -> Row:
    if not isinstance(entry, Mapping):
        raise ValueError("is no object with path and label")
    path, label = entry.get("path"), entry.get("label")
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError("has no path")
    os.fsencode(path)  # a lone surrogate is no part of a path
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        raise ValueError(f"has no label for {path}")
    return Row(path, str(label))
