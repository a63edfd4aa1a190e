"""A real browser for the tests of pages: Debian's chromium, which Playwright drives and does not download.

Without one, the test files that import this are skipped.
"""

import contextlib
import shutil
from collections.abc import Iterator

import pytest

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("no chromium is installed (apt-get install chromium)", allow_module_level=True)
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright  # noqa: E402


@contextlib.contextmanager
def launched(*more: str) -> Iterator[Browser]:
    """Headless, with further arguments."""
    with sync_playwright() as playwright:
        # A container's root cannot have a sandbox, and the pages are ours.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *more])
        yield browser
        browser.close()


def watched(page: Page, allowed: tuple[str, ...], expected: tuple[str, ...] = ()) -> list[str]:
    """A list to which whatever goes wrong in a page is added from here on.

    Args:
        page: before it is opened.
        allowed: beginnings of what it may ask for.
        expected: beginnings of what the console may say.
    """
    wrong: list[str] = []

    def said(message: ConsoleMessage) -> None:
        if not message.text.startswith(expected):
            wrong.append(f"console: {message.text}")  # such as what a policy blocked

    def asked(request: Request) -> None:
        if not request.url.startswith(allowed):
            wrong.append(f"asked: {request.url}")

    page.on("console", said)
    page.on("request", asked)
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    return wrong
