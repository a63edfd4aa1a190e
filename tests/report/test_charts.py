"""Charts are drawings that can be read: round ticks, gaps, tooltips, text that stays text."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from ffcv_r50.report import charts, numbers
from ffcv_r50.report.charts import Mark, Panel, Series

EVIL = "<script>&\"'"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 88, [0, 20, 40, 60, 80]),
        (0.13, 0.29, [0.15, 0.2, 0.25]),
        (-0.3, 0.3, [-0.2, 0, 0.2]),
        (0, 0.00017, [0, 0.00005, 0.0001, 0.00015]),
        (3, 3, [3]),
        (0, math.inf, [0]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks(low, high) == expected


@pytest.mark.parametrize("seed", range(5))
def test_ticks_are_about_as_many_as_asked_for(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(200):
        low = float(rng.normal() * 10 ** rng.uniform(-6, 6))
        high = low + float(10 ** rng.uniform(-6, 6))
        found = charts.ticks(low, high, 5)
        assert 2 <= len(found) <= 6, (low, high, found)
        steps = np.diff(found)
        assert np.allclose(steps, steps[0], rtol=1e-6)
        digits = f"{steps[0]:.0e}"[0]
        assert digits in "125"


def test_numbers_are_short() -> None:
    told = [charts.number(value) for value in (1281167, 78.314, 0.00017, 1e-5, 0.0, 2.0, math.nan)]
    assert told == ["1,281,167", "78.31", "0.00017", "1e-5", "0", "2", "–"]


def drawn(panel: Panel, epochs: int = 4, marks: tuple[Mark, ...] = ()) -> ElementTree.Element:
    return ElementTree.fromstring(charts.panel(panel, epochs, marks, charts.WIDE))


def test_a_line_has_a_gap_where_a_value_is_missing() -> None:
    line = Series("loss", [1, 2, 3, 4], [3.0, math.nan, 2.0, 1.0], 0)
    [path] = drawn(Panel("Loss", "", [line])).iter("path")
    assert re.sub(r"[\d. ]+", "", path.get("d", "")) == "MML"


def test_a_place_tells_what_all_lines_have_there() -> None:
    lines = [Series("a", [1, 2], [0.5, 0.25], 0), Series("b", [1, 2], [math.nan, 70.125], 1)]
    titles = [t.text for t in drawn(Panel("x", "%", lines), 2).iter("title")]
    assert titles == ["epoch 1\na: 0.5 %", "epoch 2\na: 0.25 %\nb: 70.12 %"]


def test_long_runs_have_no_more_places_than_can_be_pointed_at() -> None:
    epochs = np.arange(1, 601)
    tree = drawn(Panel("x", "", [Series("a", epochs, epochs, 0)]), 600)
    titles = [title.text or "" for title in tree.iter("title")]
    assert len(titles) == charts.MOST_POINTS
    assert titles[-1] == "epoch 600\na: 600"


def test_stacked_bars_add_up() -> None:
    bars = [Series("a", [1, 2], [3.0, 1.0], 0), Series("b", [1, 2], [1.0, 3.0], 1)]
    tree = drawn(Panel("x", "s", bars, stacked=True), 2)
    tops = {}
    for path in tree.iter("path"):
        heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path.get("d", ""))]
        tops[path.get("class")] = heights[:4]
    assert len(set(tops["area c1"])) == 1, "3 + 1 and 1 + 3 reach the same height"
    assert tops["area c0"][0] < tops["area c0"][2], "3 is higher than 1"


def test_marks_are_at_their_epoch_and_say_what_happened() -> None:
    line = Series("a", [1, 2, 3, 4], [1, 2, 3, 4], 0)
    tree = drawn(Panel("x", "", [line]), 4, (Mark(2, f"restarted {EVIL}"),))
    [mark] = [e for e in tree.iter("line") if e.get("class") == "mark"]
    middle = (charts.LEFT + charts.WIDE - charts.RIGHT) / 2
    assert float(mark.get("x1", "")) == pytest.approx(middle, abs=0.1)
    assert f"restarted {EVIL}" in [title.text for title in tree.iter("title")]


def test_wide_spans_are_logarithmic() -> None:
    axis = charts.value_axis(np.array([0.01, 1, 1000.0]), 100, 0)
    assert axis.log
    assert axis.ticks == [0.01, 0.1, 1, 10, 100, 1000]
    assert np.diff(axis.at([0.1, 1, 10])) == pytest.approx(
        np.diff(axis.at([10, 1, 0.1]))[::-1] * -1
    )
    assert not charts.value_axis(np.array([0.0, 1000]), 100, 0).log
    assert charts.value_axis(np.array([math.nan]), 100, 0).ticks


@pytest.mark.parametrize("width", [charts.WIDE, charts.NARROW])
def test_nothing_is_drawn_outside_and_names_stay_text(width: int) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 9, (12, 12))
    confidence = rng.random(500)
    found = numbers.calibration(confidence, rng.random(500) < confidence)
    groups = numbers.accuracy_by_size(rng.integers(30, 500, 300), rng.random(300) < 0.8)
    rows = [Series(EVIL, [0, 4, 8], [0, 1, 0.5], 0), Series("flat", [0, 8], [0.9, 0.9], 1)]
    for text in (
        charts.heatmap(matrix, [EVIL] * 12),
        charts.reliability(found, width),
        charts.by_size(groups, width),
        charts.strip(rows, 8, [], width),
    ):
        tree = ElementTree.fromstring(text)
        tree = tree if tree.tag == "svg" else tree[0]
        box = [float(part) for part in tree.get("viewBox", "").split()]
        for element in tree.iter():
            assert element.tag in ("svg", "g", "title", "text", "rect", "line", "path", "circle")
            for key, limit in (("x", box[2]), ("x2", box[2]), ("cx", box[2]), ("y2", box[3])):
                if value := element.get(key):
                    assert -0.1 <= float(value) <= limit + 0.1, (key, value, limit)
