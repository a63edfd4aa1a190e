"""The page in a real browser."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser import launched, watched
from tests.conftest import Dataset
from tests.demo.conftest import SHOWN, Site, photos

pytestmark = pytest.mark.slow

PHONE, DESKTOP = 375, 1280


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched("--use-fake-device-for-media-stream") as browser:  # the camera is a test picture
        yield browser


class Opened(NamedTuple):
    """A page, and what went wrong in it."""

    page: Page
    wrong: list[str]

    @property
    def results(self) -> Locator:
        return self.page.locator("#results > li")

    def upload(self, *files: Path) -> None:
        self.page.locator("#files").set_input_files(files)

    def fits(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


@pytest.fixture
def opened(request: pytest.FixtureRequest, browser: Browser, site: Site) -> Iterator[Opened]:
    """The page, at a width; nothing may go wrong in it, nor may it ask another host for anything."""
    width = getattr(request, "param", DESKTOP)
    context = browser.new_context(viewport={"width": width, "height": 900})
    context.set_default_timeout(30_000)
    page = context.new_page()
    refused = "Failed to load resource: the server responded"
    wrong = watched(page, (site.address + "/", "data:"), (refused,))
    page.goto(site.address)
    yield Opened(page, wrong)
    assert wrong == []
    context.close()


@pytest.mark.parametrize("opened", [PHONE, DESKTOP], indirect=True)
def test_a_photo(opened: Opened, dataset: Dataset) -> None:
    page, results = opened.page, opened.results
    assert opened.fits()
    photo = photos(dataset)[0]
    opened.upload(photo)
    bars = results.locator(".bars button")
    expect(bars).to_have_count(3)
    assert results.locator("h3").inner_text() == photo.name
    names = bars.locator(".name").all_inner_texts()
    assert all(any(name.startswith(shown) for shown in SHOWN) for name in names)
    shares = [float(text.removesuffix(" %")) for text in bars.locator("b").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert "ms in the network" in results.locator(".time").inner_text()
    first = page.evaluate("document.querySelector('.map').src")
    seen: list[bool] = []
    for number in range(3):
        bars.nth(number).click()
        assert bars.nth(number).get_attribute("aria-pressed") == "true"
        caption = results.locator(".caption").inner_text()
        assert names[number] in caption
        seen.append(results.locator(".map").is_visible())
        assert seen[-1] == caption.startswith("Where it sees"), "or there is nothing to see"
    assert any(seen)
    bars.nth(0).click()
    assert page.evaluate("document.querySelector('.map').src") == first
    results.get_by_role("checkbox").uncheck()
    assert not results.locator(".map").is_visible()
    assert page.evaluate(
        "[...document.querySelectorAll('.seen')].every(image => image.naturalWidth === 96)"
    )
    assert opened.fits(), "with a result, and names of any length"
    results.get_by_role("button", name="Remove").click()
    expect(results).to_have_count(0)


def test_bad_files_get_a_sentence_and_the_others_are_done(
    opened: Opened, dataset: Dataset, tmp_path: Path
) -> None:
    text = tmp_path / "<b>text.jpg"
    text.write_text("no image")
    huge = tmp_path / "huge.jpg"
    with open(huge, "wb") as file:
        file.truncate(33_000_000)
    sent: list[str] = []
    opened.page.on("request", lambda asked: sent.append(asked.url))
    opened.upload(text, huge, photos(dataset)[0])
    expect(opened.results.locator(".bars")).to_have_count(3)
    expect(opened.results.locator(".answer:visible")).to_have_count(1)
    sentences = opened.results.locator(".status.wrong").all_inner_texts()
    assert sentences == [  # the newest first
        "The file has 33 MB, at most 32 MB are taken. Make the image smaller.",
        "This is not a JPEG, PNG, WebP, GIF or BMP image. Choose another file.",
    ]
    assert "<b>text.jpg" in opened.results.locator("h3").all_inner_texts()
    assert sum(url.endswith("/classify") for url in sent) == 2, "the huge one is not sent"


def test_a_photo_of_20_mb(opened: Opened, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2100, 2700, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=99, subsampling=0)
    assert 20_000_000 < len(buffer.getvalue()) < 22_000_000
    (tmp_path / "photo.jpg").write_bytes(buffer.getvalue())
    opened.upload(tmp_path / "photo.jpg")
    expect(opened.results.locator(".bars button")).to_have_count(3)


def test_ten_at_once(opened: Opened, dataset: Dataset) -> None:
    files = photos(dataset)[:10]
    opened.upload(*files)
    expect(opened.results.locator(".answer:visible")).to_have_count(10)
    assert opened.results.locator("h3").all_inner_texts() == [path.name for path in files[::-1]]


def test_more_than_may_be_sent(opened: Opened, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.jpg" for i in range(31)]
    for file in files:
        file.write_text("no image")
    opened.upload(*files)
    expect(opened.results.locator(".status.wrong")).to_have_count(30)
    said = opened.page.get_by_role("alert").inner_text()
    assert said == "At most 30 photos at once; the first 30 are taken."


def test_a_drop(opened: Opened, dataset: Dataset) -> None:
    content = list(photos(dataset)[0].read_bytes())
    dropped = opened.page.evaluate_handle(
        """content => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(content)], "dropped.jpg"));
            return transfer;
        }""",
        content,
    )
    opened.page.locator("h1").dispatch_event("drop", {"dataTransfer": dropped})
    expect(opened.results.locator(".bars button")).to_have_count(3)


def test_an_example(opened: Opened) -> None:
    opened.page.locator(".examples button").nth(0).click()
    expect(opened.results.locator(".bars button")).to_have_count(3)
    label = opened.results.locator(".label")
    assert label.inner_text().startswith(f"Labelled “{SHOWN[0]}”: ")
    first = opened.results.locator(".name").nth(0).inner_text()
    verdict = "recognised" if first == SHOWN[0] else "not recognised"
    assert label.locator("b").inner_text() == verdict


def test_the_camera_is_denied(opened: Opened) -> None:
    opened.page.get_by_role("button", name="Use camera").click()
    said = opened.page.get_by_role("alert")
    expect(said).to_have_text(
        "The camera is not allowed. Allow it in the browser's address bar, or choose a photo."
    )
    assert not opened.page.locator("#camera").is_visible()


def test_the_camera(opened: Opened) -> None:
    opened.page.context.grant_permissions(["camera"])
    opened.page.get_by_role("button", name="Use camera").click()
    expect(opened.page.locator("video")).to_be_visible()
    opened.page.get_by_role("button", name="Take picture").click()
    expect(opened.results.locator(".bars button")).to_have_count(3)
    assert not opened.page.locator("#camera").is_visible()
    assert opened.page.evaluate("document.querySelector('video').srcObject === null")


def test_the_report_is_a_click_away(opened: Opened) -> None:
    with opened.page.context.expect_page() as other:
        opened.page.get_by_role("link", name="Training report").click()
    other.value.wait_for_load_state()
    assert other.value.title() == "The report"
    assert other.value.evaluate("window.ran") == 1
    assert other.value.evaluate("origin") == "null", "apart from the page"


def test_a_server_that_is_gone(opened: Opened, site: Site, dataset: Dataset) -> None:
    opened.page.route("**/classify", lambda route: route.abort())
    opened.upload(photos(dataset)[0])
    expect(opened.results.locator(".status.wrong")).to_have_text(
        "The server cannot be reached. Is it still running?"
    )
    opened.wrong.clear()  # the browser says so, too
