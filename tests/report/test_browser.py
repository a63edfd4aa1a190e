"""The report in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from ffcv_r50.report import folder, page
from tests.browser import launched, watched
from tests.report import runs

pytestmark = pytest.mark.slow

WIDTHS = (375, 800, 1400)
LARGEST = 5_000_000
"""Bytes of a page."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module", params=[10, 1000])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run on 10 or 1,000 classes; of these 50,000 samples. A class's name is a script."""
    classes = request.param
    names = [f"kind {i:04}" for i in range(classes)]
    names[3] = runs.EVIL
    base = tmp_path_factory.mktemp(f"classes{classes}")
    made = runs.make(base, names, per_class=50, epochs=12 if classes == 10 else 88)
    page.write(folder.read(made.folder), base / "report.html")
    return base / "report.html"


def opened(browser: Browser, report: Path, width: int, scheme: str) -> tuple[Page, list[str]]:
    """The page, and what went wrong in it."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    shown = context.new_page()
    wrong = watched(shown, ("file:", "data:"))
    shown.goto(report.as_uri())
    return shown, wrong


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_errors_and_fits(
    browser: Browser, report: Path, width: int, scheme: str
) -> None:
    assert report.stat().st_size <= LARGEST
    shown, wrong = opened(browser, report, width, scheme)
    scrolls = shown.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert scrolls <= 0, "the page scrolls to the side"
    visible = [chart for chart in shown.locator("main svg").all() if chart.is_visible()]
    assert len(visible) >= 8
    for chart in visible:
        box = chart.bounding_box()
        assert box
        assert box["width"] > 200
        assert box["height"] > 40
    assert shown.evaluate(
        "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    )
    # Told apart from a page whose colours do not follow the scheme.
    background = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in background[4:-1].split(",")) / 3
    assert (brightness < 60) == (scheme == "dark")
    assert wrong == []
    shown.context.close()


def column(shown: Page, number: int) -> list[str]:
    """Of the table of classes, the rows that are to be seen."""
    found: list[str] = shown.evaluate(
        "n => [...document.querySelectorAll('#class-table tbody tr')].filter(row => !row.hidden)"
        ".map(row => row.cells[n].textContent)",
        number,
    )
    return found


def test_classes_are_sorted_and_searched(browser: Browser, report: Path) -> None:
    shown, wrong = opened(browser, report, 800, "light")
    recall = [float(text) for text in column(shown, 1)]
    assert recall == sorted(recall), "the least recognised first"
    for number, name in enumerate(("class", "recall", "precision", "F1", "images")):
        head = shown.locator("#class-table th").nth(number)
        head.get_by_role("button", name=name).click()
        first = head.get_attribute("aria-sort")
        once = column(shown, number)
        head.get_by_role("button", name=name).click()
        twice = column(shown, number)
        assert {first, head.get_attribute("aria-sort")} == {"ascending", "descending"}
        if name == "class":
            kinds = [text for text in once if text != runs.EVIL]
            assert first == "ascending"
            assert kinds == sorted(kinds)
            assert twice == once[::-1]
            continue
        up, down = (once, twice) if first == "ascending" else (twice, once)
        assert [float(text) for text in up] == sorted(map(float, up))
        assert [float(text) for text in down] == sorted(map(float, down), reverse=True)
    shown.get_by_role("searchbox").fill("KIND 000")
    assert set(column(shown, 0)) == {f"kind 000{i}" for i in range(10) if i != 3}
    assert shown.locator("#class-count").inner_text().startswith("9 of ")
    shown.get_by_role("searchbox").fill("<script>")
    assert column(shown, 0) == [runs.EVIL]
    shown.get_by_role("searchbox").fill("")
    assert len(column(shown, 0)) == len(recall)
    assert wrong == []
    shown.context.close()
