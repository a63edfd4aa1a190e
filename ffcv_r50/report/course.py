"""The course of a run: its recipe, curves, speed and time over the epochs."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from ffcv_r50 import recipe
from ffcv_r50.report import charts
from ffcv_r50.report.charts import Mark, Panel, Series
from ffcv_r50.report.folder import Run


class Legend(NamedTuple):
    """A line of a chart, its colour, and where it ended; of stacked ones the share of all."""

    label: str
    color: int
    style: str
    value: str


class Chart(NamedTuple):
    """A figure of the page."""

    title: str
    legend: list[Legend]
    wide: Markup
    narrow: Markup
    note: str = ""


def both(draw: Callable[[int], Markup]) -> tuple[Markup, Markup]:
    """The wide and the narrow one."""
    return draw(charts.WIDE), draw(charts.NARROW)


def marks(run: Run) -> list[Mark]:
    """Restarts, at the begin of the epoch in which they were; with the number of processes if it changed."""
    sizes, found = run.processes, []
    for row in run.start_rows:
        epoch = int(run.ends[row]) - 1
        if row == 0 and epoch == 0:
            continue
        text = f"restarted in epoch {epoch + 1}"
        if sizes is not None and row and sizes[row] != sizes[row - 1]:
            text += f", {sizes[row - 1]} -> {sizes[row]} processes"
        found.append(Mark(epoch, text))
    return found


def curves(run: Run) -> list[Chart]:
    """The recipe as a strip, then loss, accuracy and the gradient's norm."""
    epochs, events, rows = run.config.training.epochs, marks(run), schedule(run)
    strip = Chart("Recipe", [], *both(lambda width: charts.strip(rows, epochs, events, width)))
    return [strip, *(_chart(panel, epochs, events) for panel in curve_panels(run))]


def curve_panels(run: Run) -> list[Panel]:
    """Loss, accuracy, and the gradient's norm where it was recorded."""
    panels = [
        Panel("Loss", "", _loss(run)),
        Panel("Accuracy", "%", _accuracy(run)),
        Panel("Gradient norm", "", _gradient(run), height=150),
    ]
    return [panel for panel in panels if panel.series]


def speed(run: Run) -> list[Chart]:
    """Images a second, and where the time of each epoch went."""
    return [_chart(panel, run.config.training.epochs, marks(run)) for panel in rate_panels(run)]


def rate_panels(run: Run) -> list[Panel]:
    """Images a second, waiting for data, and where the time of each epoch went."""
    ends, steps = run.ends, run.steps
    train, waits = run.column("epoch_seconds"), run.column("data_wait_fraction")
    rates = [
        Series("steps", steps.epoch, steps.images_per_second, 0, "thin"),
        Series("training", ends, run.column("images_per_second"), 0),
    ]
    waiting, steps_alone = train * waits, run.column("step_seconds")
    saving = run.column("save_seconds")
    # Older versions did not record what of the training was saving.
    training = np.where(np.isfinite(steps_alone), steps_alone, train - np.nan_to_num(waiting))
    times = [
        Series("training", ends, training, 0),
        Series("waiting for data", ends, waiting, 3),
        Series("evaluation", ends, run.column("eval_seconds"), 2),
        Series("saving", ends, saving, 4),
        Series("starting", ends, run.column("start_seconds"), 5),
    ]
    busy = [Series("of rank 0's GPU", ends, run.column("gpu_utilization"), 2)]
    power = [Series("of rank 0's GPU", ends, run.column("gpu_power_watts"), 4)]
    waiting_share = [Series("of the training", ends, 100 * waits, 3)]
    panels = [
        Panel("Training speed", "images/s", _known(rates), zero=True, height=150),
        Panel("Data wait", "%", _known(waiting_share), zero=True, height=130),
        Panel("GPU utilisation", "%", _known(busy), zero=True, height=130),
        Panel("GPU power", "W", _known(power), zero=True, height=130),
        Panel("Time of each epoch", "s", _known(times), stacked=True),
    ]
    return [panel for panel in panels if panel.series]


def _loss(run: Run) -> list[Series]:
    ends, steps = run.ends, run.steps
    lines = [
        Series("steps", steps.epoch, steps.loss, 0, "thin"),
        Series("training", ends, run.column("train_loss"), 0),
        Series("validation", ends, run.column("val_loss"), 1),
    ]
    return _known([*lines, *_averages(run, "val_loss")])


def _gradient(run: Run) -> list[Series]:
    steps, ends = run.steps, run.ends
    epochs = [steps.gradient_norm[np.floor(steps.epoch) == end - 1] for end in ends]
    medians = [float(np.median(norms)) if norms.size else np.nan for norms in epochs]
    lines = [
        Series("steps", steps.epoch, steps.gradient_norm, 0, "thin"),
        Series("median of the epoch, before clipping", ends, medians, 0),
    ]
    return _known(lines)


def _accuracy(run: Run) -> list[Series]:
    ends = run.ends
    lines = [
        Series("top-1", ends, run.column("top_1"), 1),
        Series("top-5", ends, run.column("top_5"), 2),
        Series("training top-1", ends, run.column("train_top_1"), 0),
    ]
    return _known([*lines, *_averages(run, "top_1", " top-1")])


def _averages(run: Run, quantity: str, words: str = "") -> Iterator[Series]:
    """Through the epochs after which they were evaluated."""
    for i, name in enumerate(sorted(run.averages)):
        values = run.column(run.key(name, quantity))
        there = np.isfinite(values)
        yield Series(f"{name}{words}", run.ends[there], values[there], 3 + i % 3, "dashed")


def _known(lines: Sequence[Series]) -> list[Series]:
    """Those that were logged."""
    return [line for line in lines if np.isfinite(np.asarray(line.y, np.float64)).any()]


def schedule(run: Run) -> list[Series]:
    """Each row of the schedule and each strength that changes, over the whole run."""
    config, epochs = run.config, run.config.training.epochs
    found = []
    for i, (name, row) in enumerate(config.rows.items()):
        x = np.union1d(np.linspace(0, epochs, 241), [point.epoch for point in row.points])
        y = [row.at(at) for at in x]
        if name == "resolution":  # holds for an epoch
            x = np.repeat(np.arange(epochs + 1), 2)[1:-1].astype(np.float64)
            y = [recipe.resolution(config, epoch) for epoch in range(epochs) for _ in "ab"]
        found.append(Series(_words(name), x, y, i % 6))
    return found


def _words(name: str) -> str:
    return {"lr": "learning rate"}.get(name, name.replace("_", " "))


def _chart(panel: Panel, epochs: int, events: Sequence[Mark]) -> Chart:
    legend = []
    total = sum(float(np.nansum(np.asarray(line.y, np.float64))) for line in panel.series)
    for line in panel.series:
        if line.style == "thin":
            continue
        values = np.asarray(line.y, np.float64)
        last = values[np.isfinite(values)][-1]
        value = f"{charts.number(float(last))} {panel.unit}".strip()
        if panel.stacked:
            value = charts.percent(float(np.nansum(values)) / total)
        legend.append(Legend(line.label, line.color, line.style, value))
    drawn = both(lambda width: charts.panel(panel, epochs, events, width))
    return Chart(panel.title, legend, *drawn)
