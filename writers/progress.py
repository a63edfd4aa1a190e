"""How far the writing is: a bar on a terminal, a line every few seconds elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 5.0
"""Between plain lines."""

Report = Callable[[int, int], None]
"""Called with the images done and the bytes stored so far."""


@contextlib.contextmanager
def shown(total: int, first: int = 0) -> Iterator[Report]:
    """Show the progress towards ``total`` images, ``first`` of them done, while the context lasts."""
    console = Console()
    if console.is_terminal:
        with _bar(console, total, first) as report:
            yield report
    else:
        yield _lines(total, first)


@contextlib.contextmanager
def _bar(console: Console, total: int, first: int) -> Iterator[Report]:
    start = time.monotonic()
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=total, completed=first)

        def report(images: int, size: int) -> None:
            speed = (images - first) / (time.monotonic() - start)
            progress.update(
                task,
                completed=images,
                description=f"{speed:,.0f} images/s, {size / 1e6:,.0f} MB",
            )

        yield report


def _lines(total: int, first: int) -> Report:
    start = last = time.monotonic()

    def report(images: int, size: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_SECONDS and images > first:
            last = now
            speed = (images - first) / (now - start)
            print(
                f"{images:,} of {total:,} images, {speed:,.0f} images/s, {size / 1e6:,.0f} MB, "
                f"{(total - images) / speed:,.0f} s left",
                flush=True,
            )

    return report
