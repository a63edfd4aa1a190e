"""The classes and the confusion matrix of a report as CSV, for spreadsheets and programs."""

import csv
import io
from collections.abc import Iterable, Sequence

import numpy as np

from ffcv_r50.report import numbers
from ffcv_r50.report.folder import Predictions


def classification_report(found: Predictions, names: Sequence[str]) -> str:
    """What scikit-learn's function of that name has: a row a class, then accuracy and averages.

    A share of nothing (the precision of a class that is never predicted) is empty, and left out of
    the averages.
    """
    table = numbers.classes(found.target, found.predicted, len(names))
    columns = np.stack([table.precision, table.recall, table.f1])
    rows: list[list[object]] = [["class", "name", "precision", "recall", "f1-score", "support"]]
    for i, name in enumerate(names):
        rows.append([i, name, *map(_share, columns[:, i]), int(table.support[i])])
    total = int(table.support.sum())
    accuracy = _share(float(found.right.mean()))
    rows.append(["", "accuracy", accuracy, accuracy, accuracy, total])
    known = np.isfinite(columns)
    values = np.where(known, columns, 0)
    for title, weights in (("macro avg", np.ones(len(names))), ("weighted avg", table.support)):
        means = numbers.share((values * weights).sum(1), (known * weights).sum(1))
        rows.append(["", title, *map(_share, means), total])
    return _csv(rows)


def confusion_matrix(found: Predictions, names: Sequence[str]) -> str:
    """Rows are what samples show, columns what they were taken for; both with their names."""
    matrix = numbers.confusion_matrix(found.target, found.predicted, len(names))
    rows = [["", *names], *([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))]
    return _csv(rows)


def _share(value: float) -> str:
    return f"{value:.6f}" if np.isfinite(value) else ""


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
