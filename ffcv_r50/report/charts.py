"""Charts as SVG text, drawn by hand; their colours are the page's (CSS variables).

A chart is drawn for a width; the page holds a wide and a narrow one and shows the one that fits, so
that text has its size on a phone too. What stands at an epoch is read by pointing at it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from ffcv_r50.report.numbers import Calibration, Floats, Group, Ints, wilson

WIDE, NARROW = 880, 352
"""Units of the drawing; about pixels."""
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 10, 26
MOST_POINTS = 100
"""Places of a chart that tell their values when pointed at."""
LABELLED = 40
"""A matrix of more classes is a picture without names."""


class Series(NamedTuple):
    """A line of a panel."""

    label: str
    x: npt.ArrayLike
    """Epochs, ascending; may have fractions."""
    y: npt.ArrayLike
    """Not finite: a gap."""
    color: int
    """0 to 5, of the page's palette."""
    style: str = "line"
    """``line``, ``dashed``, or ``thin`` for the noise behind another one."""


class Mark(NamedTuple):
    """Something that happened: a line across the panels."""

    epoch: float
    text: str


class Panel(NamedTuple):
    """Several lines, or bars on top of each other, over the epochs."""

    title: str
    unit: str
    series: Sequence[Series]
    stacked: bool = False
    zero: bool = False
    """Whether the values start at 0, so that heights can be compared."""
    height: int = 190


# ------------------------------------------------------------------------------------------ numbers


def number(value: float) -> str:
    """Four digits where they matter: 1,281,167; 78.31; 0.00017."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}".replace("e-0", "e-")


def percent(share: float, digits: int = 0) -> str:
    """0.1234 -> 12 %."""
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else "–"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers, all from ``low`` to ``high``: multiples of 1, 2 or 5 times a power of 10."""
    if not low < high < math.inf:
        return [low]
    step = tick_step(low, high, count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # 3 * 0.1 is 0.30000000000000004; rounded it is what is written.
    digits = max(0, -math.floor(math.log10(step)))
    return [round(n * step, digits) for n in range(first, last + 1)]


def tick_step(low: float, high: float, count: int = 5) -> float:
    """What is between two of :func:`ticks`."""
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / count))
    return next(power * n for n in (1, 2, 5, 10) if power * n * count >= span * (1 - 1e-9))


class Axis(NamedTuple):
    """Values to places."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, values: npt.ArrayLike) -> Floats:
        """Where they are drawn."""
        found: Floats = np.asarray(values, np.float64)
        low, high = self.low, self.high
        if self.log:
            found, low, high = np.log(np.maximum(found, low)), math.log(low), math.log(high)
        return self.start + (found - low) / (high - low) * (self.end - self.start)

    @property
    def room(self) -> int:
        """How many numbers there is room for."""
        length = self.end - self.start
        return max(2, round(length / 54 if length > 0 else -length / 36))

    @property
    def ticks(self) -> list[float]:
        """Round numbers along it."""
        if not self.log:
            return ticks(self.low, self.high, self.room)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        wide = len(powers) > 3
        found = [m * 10.0**p for p in powers for m in ((1,) if wide else (1, 2, 5))]
        return [value for value in found if self.low <= value <= self.high]


def value_axis(values: Floats, start: float, end: float, *, zero: bool = False) -> Axis:
    """An axis that holds the finite ones of some values; logarithmic where they span a factor of 100.

    Args:
        values: to be drawn.
        start, end: where it lies.
        zero: whether 0 must be on it.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Axis(0, 1, start, end)
    low, high = float(finite.min()), float(finite.max())
    if not zero and low > 0 and high / low > 100:
        return Axis(low / 1.2, high * 1.2, start, end, log=True)
    if zero or (low > 0 and low < 0.4 * high):
        low = min(low, 0.0)
    if low == high:
        high += 0.05 * abs(high) or 1.0
    axis = Axis(low, high, start, end)
    step = tick_step(low, high, axis.room)
    return axis._replace(
        low=step * math.floor(low / step), high=step * math.ceil(high / step - 1e-9)
    )


# -------------------------------------------------------------------------------------------- parts


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> Markup:
    body = "".join(parts)
    return Markup(
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">{body}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _path(x: Floats, y: Floats) -> str:
    """Through all points; where one is not finite a new line begins."""
    words, pen = [], "M"
    for px, py in zip(x, y, strict=True):
        if math.isfinite(py):
            words.append(f"{pen}{px:.1f} {py:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(words)


def _frame(x: Axis, y: Axis, *, names_x: bool = True) -> list[str]:
    """Grid, the numbers at both axes."""
    parts = []
    for value, place in zip(y.ticks, y.at(y.ticks), strict=True):
        parts.append(_line(x.start, place, x.end, place, "grid"))
        parts.append(_text(x.start - 7, place + 4, number(value), "end"))
    epochs = [value for value in x.ticks if value == round(value)] if names_x else []
    for value, place in zip(epochs, x.at(epochs), strict=True):
        parts.append(_text(place, y.start + 18, number(value), "middle"))
    parts.append(_line(x.start, y.start, x.end, y.start, "axis"))
    return parts


def _marks(marks: Sequence[Mark], x: Axis, top: float, bottom: float) -> list[str]:
    parts = []
    for mark in marks:
        place = float(x.at(mark.epoch))
        title = f"<title>{escape(mark.text)}</title>"
        hit = f'<rect class="hit" x="{place - 4:.1f}" y="{top:.1f}" width="8" height="{bottom - top:.1f}"/>'
        parts.append(f"<g>{title}{hit}{_line(place, top, place, bottom, 'mark')}</g>")
    return parts


# ------------------------------------------------------------------------------------------- panels


def panel(drawn: Panel, epochs: float, marks: Sequence[Mark], width: int) -> Markup:
    """A panel over the epochs from 0 to ``epochs``."""
    x = Axis(0, max(epochs, 1e-9), LEFT, width - RIGHT)
    bottom = drawn.height - BOTTOM
    series = _stack(drawn.series) if drawn.stacked else list(drawn.series)
    values = [np.asarray(s.y, np.float64) for s in series]
    y = value_axis(
        np.concatenate([*values, np.empty(0)]), bottom, TOP, zero=drawn.stacked or drawn.zero
    )
    parts = _frame(x, y)
    order = reversed(series) if drawn.stacked else sorted(series, key=lambda s: s.style != "thin")
    for one in order:
        points = _path(x.at(one.x), y.at(one.y))
        if drawn.stacked and len(points):
            ends = x.at(np.asarray(one.x)[[-1, 0]])
            points += f"L{ends[0]:.1f} {bottom}L{ends[1]:.1f} {bottom}Z"
            parts.append(f'<path class="area c{one.color}" d="{points}"/>')
        else:
            parts.append(f'<path class="{one.style} c{one.color}" d="{points}"/>')
    parts += _readings(drawn, series, x, y)
    parts += _marks(marks, x, TOP, bottom)
    return _svg(width, drawn.height, drawn.title, parts)


def _stack(series: Sequence[Series]) -> list[Series]:
    """Each on top of those before it, as steps from the begin of an epoch to its end."""
    total: Floats = np.zeros(len(np.asarray(series[0].x)))
    stacked = []
    for one in series:
        total = total + np.nan_to_num(np.asarray(one.y, np.float64))
        ends = np.asarray(one.x, np.float64)
        edges = np.stack([ends - 1, ends], 1).ravel()
        stacked.append(one._replace(x=edges, y=np.repeat(total, 2)))
    return stacked


def _readings(drawn: Panel, series: Sequence[Series], x: Axis, y: Axis) -> list[str]:
    """For each epoch, or of many for some, what all lines have there."""
    told = [s for s in drawn.series if s.style != "thin"]
    if not told or not len(np.asarray(told[0].x)):
        return []
    at = np.asarray(told[0].x, np.float64)
    chosen = np.unique(np.linspace(0, len(at) - 1, min(len(at), MOST_POINTS)).round().astype(int))
    places = x.at(at[chosen])
    edges = [x.start, *(places[:-1] + places[1:]) / 2, x.end]
    parts = []
    for i, place, low, high in zip(chosen, places, edges, edges[1:], strict=False):
        lines, dots = [f"epoch {number(at[i])}"], []
        for one in told:
            value = np.asarray(one.y, np.float64)[np.asarray(one.x) == at[i]]
            if value.size and math.isfinite(value[0]):
                lines.append(f"{one.label}: {number(value[0])} {drawn.unit}".rstrip())
                if not drawn.stacked:
                    dots.append(
                        f'<circle class="c{one.color}" cx="{place:.1f}" cy="{float(y.at(value[0])):.1f}" r="3"/>'
                    )
        title = f"<title>{escape(chr(10).join(lines))}</title>"
        hit = f'<rect class="hit" x="{low:.1f}" y="{TOP}" width="{high - low:.1f}" height="{y.start - TOP:.1f}"/>'
        guide = _line(place, TOP, place, y.start, "guide")
        parts.append(f'<g class="at">{title}{hit}{guide}{"".join(dots)}</g>')
    return parts


def strip(rows: Sequence[Series], epochs: float, marks: Sequence[Mark], width: int) -> Markup:
    """The recipe: each quantity that changes as a band over the epochs, with its range."""
    height = 46
    x = Axis(0, max(epochs, 1e-9), LEFT, width - RIGHT)
    parts = _marks(marks, x, 0, len(rows) * height)
    for i, row in enumerate(rows):
        top, bottom = i * height + 18, (i + 1) * height - 6
        values = np.asarray(row.y, np.float64)
        high = float(values.max()) or 1.0
        y = (
            Axis(0, high, bottom, top)
            if values.min() >= 0
            else Axis(float(values.min()), high, bottom, top)
        )
        points = _path(x.at(row.x), y.at(values))
        parts.append(
            f'<path class="area c{row.color}" d="{points}L{x.end:.1f} {bottom}L{x.start:.1f} {bottom}Z"/>'
            f'<path class="line c{row.color}" d="{points}"/>'
        )
        low = float(values.min())
        span = number(high) if low == high else f"{number(low)} – {number(high)}"
        parts.append(_text(x.start, top - 5, row.label, kind="name"))
        parts.append(_text(x.end, top - 5, span, "end"))
        parts.append(_line(x.start, bottom, x.end, bottom, "axis"))
    return _svg(width, len(rows) * height, "the recipe over the epochs", parts)


# ------------------------------------------------------------------------------------ other charts


def reliability(found: Calibration, width: int) -> Markup:
    """Accuracy by confidence beside the diagonal on which both are equal; below, how many samples."""
    height, below = 300, 54
    x, y = Axis(0, 1, LEFT, width - RIGHT), Axis(0, 1, height - BOTTOM - below, TOP)
    parts = _frame(x, y, names_x=False)
    bins, most = len(found.count), max(int(found.count.max()), 1)
    step = (x.end - x.start) / bins
    for i in range(bins):
        left = x.start + i * step + 1
        count, accuracy, confidence = (
            int(found.count[i]),
            float(found.accuracy[i]),
            float(found.confidence[i]),
        )
        if not count:
            continue
        interval = wilson(round(accuracy * count), count)
        top, meant = float(y.at(accuracy)), float(y.at(confidence))
        below_both = max(top, meant)
        low, high = y.at(interval.low), y.at(interval.high)
        middle = left + step / 2 - 1
        bar = 38 * count / most
        title = (
            f"confidence {percent(confidence, 1)}, right {percent(accuracy, 1)} "
            f"(95 %: {percent(interval.low, 1)} – {percent(interval.high, 1)}), {count:,} samples"
        )
        parts.append(
            f"<g><title>{escape(title)}</title>"
            f'<rect class="bar c0" x="{left:.1f}" y="{below_both:.1f}" width="{step - 2:.1f}" height="{y.start - below_both:.1f}"/>'
            f'<rect class="gap" x="{left:.1f}" y="{min(top, meant):.1f}" width="{step - 2:.1f}" height="{abs(top - meant):.1f}"/>'
            f"{_line(middle, float(low), middle, float(high), 'whisker')}"
            f'<rect class="bar c5" x="{left:.1f}" y="{height - BOTTOM - bar:.1f}" width="{step - 2:.1f}" height="{bar:.1f}"/>'
            "</g>"
        )
    parts.append(_line(x.start, y.start, x.end, y.end, "diagonal"))
    parts.append(_line(x.start, height - BOTTOM, x.end, height - BOTTOM, "axis"))
    parts.append(_text(x.start - 7, height - BOTTOM - 14, "samples", "end"))
    for value in ticks(0, 1):
        parts.append(_text(float(x.at(value)), height - BOTTOM + 18, number(value), "middle"))
    return _svg(width, height, "accuracy by confidence", parts)


def by_size(groups: Sequence[Group], width: int) -> Markup:
    """Accuracy of groups of samples, with its 95 % interval."""
    height, row = 26 + 34 * len(groups), 34
    intervals = [group.interval for group in groups]
    x = value_axis(np.array(intervals).ravel(), 108, width - 60)
    x = x._replace(low=max(0.0, x.low), high=min(1.0, x.high), log=False)
    parts = []
    for value in ticks(x.low, x.high, 4):
        place = float(x.at(value))
        parts.append(_line(place, 4, place, height - 22, "grid"))
        parts.append(_text(place, height - 6, f"{100 * value:g} %", "middle"))
    for i, group in enumerate(groups):
        y = 20 + i * row
        low_end, high_end = group.interval
        low, high, middle = (float(x.at(v)) for v in (low_end, high_end, group.accuracy))
        name = (
            number(group.low)
            if group.low == group.high
            else f"{number(group.low)} – {number(group.high)}"
        )
        title = (
            f"{name} px: {percent(group.accuracy, 2)} of {group.count:,} "
            f"(95 %: {percent(low_end, 2)} – {percent(high_end, 2)})"
        )
        parts.append(
            f"<g><title>{escape(title)}</title>{_text(98, y + 4, f'{name} px', 'end')}"
            f"{_line(low, y, high, y, 'range c0')}"
            f'<circle class="c0" cx="{middle:.1f}" cy="{y}" r="5"/>'
            f"{_text(width, y + 4, percent(group.accuracy, 1), 'end', 'name')}</g>"
        )
    return _svg(width, height, "accuracy by image size", parts)


def heatmap(matrix: Ints, names: Sequence[str]) -> Markup:
    """A confusion matrix of at most :data:`LABELLED` classes, each cell a share of its row."""
    count = len(matrix)
    cell = 44 if count <= 15 else 24
    shown = [name if len(name) <= 16 else f"{name[:15]}…" for name in names]
    edge = 12 + 6.6 * max(len(name) for name in shown)
    total = np.maximum(matrix.sum(1), 1)
    parts = []
    for i in range(count):
        place = edge + i * cell + cell / 2
        parts.append(_text(edge - 6, place + 4, shown[i], "end"))
        parts.append(
            f'<text transform="translate({place + 4:.1f} {edge - 6:.1f}) rotate(-90)">{escape(shown[i])}</text>'
        )
        for j in range(count):
            samples = int(matrix[i, j])
            x, y, part = edge + j * cell, edge + i * cell, samples / total[i]
            if not samples:
                continue
            title = f"{samples:,} of {names[i]} ({percent(part, 1)}) taken for {names[j]}"
            kind = "hot" if i == j else "miss"
            # The root, so that single confusions are seen beside the diagonal.
            strength = part if i == j else max(0.12, part**0.5)
            parts.append(
                f"<g><title>{escape(title)}</title>"
                f'<rect class="{kind}" style="fill-opacity:{strength:.2f}" x="{x + 1:.1f}" y="{y + 1:.1f}" width="{cell - 2}" height="{cell - 2}" rx="3"/>'
            )
            if count <= 15:
                strong = " strong" if strength > 0.55 else ""
                parts.append(
                    _text(
                        x + cell / 2, y + cell / 2 + 4, number(samples), "middle", "cell" + strong
                    )
                )
            parts.append("</g>")
    side = edge + count * cell + 2
    frame = f'<rect class="frame" x="{edge:.1f}" y="{edge:.1f}" width="{count * cell}" height="{count * cell}" rx="4"/>'
    drawing = _svg(side, side, "confusion matrix", [frame, *parts])
    least = min(
        side, 24 * count + edge
    )  # of less the numbers could not be read: the page scrolls it
    return Markup('<div style="min-width:{:.0f}px;max-width:{:.0f}px">{}</div>').format(
        least, side, drawing
    )
