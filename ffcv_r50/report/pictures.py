"""A run as pictures for a README: curves, rates, confusion matrix. matplotlib draws them."""

import io
from typing import Any

import numpy as np

from ffcv_r50.errors import UserError
from ffcv_r50.report import charts, numbers
from ffcv_r50.report.course import curve_panels, rate_panels, schedule
from ffcv_r50.report.folder import Run

COLORS = ("#0072b2", "#d55e00", "#009e73", "#b3548a", "#c98a00", "#737b86")
STYLES = {"line": "-", "dashed": "--", "thin": "-"}


def draw(run: Run) -> dict[str, bytes]:
    """PNG files by name: ``curves.png``, and where they are known ``rates.png`` and ``confusion.png``.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "--format=png draws with matplotlib, which is not installed; pip install 'ffcv_r50[plots]'"
        ) from error
    [rate] = [row for row in schedule(run) if row.label == "learning rate"]
    curves = [*curve_panels(run), charts.Panel("Learning rate", "", [rate])]
    panels = {
        "curves.png": curves,
        "rates.png": rate_panels(run),
    }  # an old run's log knows no rates
    files = {name: _lines(Figure, drawn) for name, drawn in panels.items() if drawn}
    if run.predictions is not None:
        files["confusion.png"] = _confusion(Figure, run)
    return files


def _lines(figure_type: Any, panels: list[charts.Panel]) -> bytes:
    figure = figure_type(figsize=(5 * len(panels), 3.4), layout="constrained")
    for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        below = np.zeros(len(np.asarray(panel.series[0].x)))
        for line in panel.series:
            if panel.stacked:
                middle, height = np.asarray(line.x) - 0.5, np.nan_to_num(np.asarray(line.y))
                axes.bar(middle, height, 1, below, color=COLORS[line.color], label=line.label)
                below += height
                continue
            thin = line.style == "thin"
            axes.plot(
                line.x,
                line.y,
                STYLES[line.style],
                color=COLORS[line.color],
                linewidth=0.7 if thin else 1.6,
                alpha=0.35 if thin else 1,
                label=None if thin else line.label,
            )
        axes.set_title(f"{panel.title}, {panel.unit}" if panel.unit else panel.title, fontsize=10)
        axes.set_xlabel("epoch", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    return _png(figure)


def _confusion(figure_type: Any, run: Run) -> bytes:
    found, names = run.predictions, run.class_names
    assert found is not None
    matrix = numbers.confusion_matrix(found.target, found.predicted, len(names))
    order = numbers.clusters(matrix).order
    shown = np.nan_to_num(numbers.share(matrix, matrix.sum(1)[:, None]))[np.ix_(order, order)]
    figure = figure_type(figsize=(6, 5.4), layout="constrained")
    axes = figure.subplots()
    # The root, so that single confusions are seen beside the diagonal.
    image = axes.imshow(np.sqrt(shown), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if len(names) <= charts.LABELLED:
        labels = [names[i] if len(names[i]) <= 16 else f"{names[i][:15]}…" for i in order]
        axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=7, parse_math=False)
        axes.set_yticks(range(len(names)), labels, fontsize=7, parse_math=False)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.set_xlabel("taken for", fontsize=9)
    axes.set_ylabel("class", fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=np.sqrt([0, 0.01, 0.1, 0.25, 0.5, 1]))
    bar.ax.set_yticklabels(["0", "1 %", "10 %", "25 %", "50 %", "100 %"], fontsize=8)
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
