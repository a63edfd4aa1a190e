"""What a person sees: a progress bar on a terminal, plain lines elsewhere; one process speaks."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

PLAIN_SECONDS = 10.0
"""Between two plain progress lines."""


def duration(seconds: float) -> str:
    """75 -> 1:15, 3675 -> 1:01:15."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Bar:
    """The progress of one loop; use :meth:`Console.bar`."""

    def __init__(self, console: "Console", title: str, total: int, done: int, bar: Progress | None):
        self._console = console
        self._title = title
        self._total = total
        self._first = done
        self._begin = self._spoken = time.monotonic()
        self._bar = bar
        self._task = bar.add_task(title, total=total, completed=done, text="") if bar else None

    def update(self, done: int, text: str) -> None:
        """Show that ``done`` of the total are finished, with what ``text`` tells of them."""
        if not self._console.enabled:
            return
        now = time.monotonic()
        rate = (done - self._first) / max(now - self._begin, 1e-9)
        left = f"{duration((self._total - done) / rate)} left" if rate else ""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, text=f"{text}  {left}")
        elif now - self._spoken >= PLAIN_SECONDS:
            self._spoken = now
            self._console.say(f"{self._title}  {done}/{self._total}  {text}  {left}")


class _Tireless(rich.console.Console):
    """What it writes to may be gone (``| head``, a closed terminal); the run goes on."""

    def on_broken_pipe(self) -> None:
        """Write to nowhere from now on, instead of ending the program."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Console:
    """Speaks for the run where ``enabled`` (rank 0), is silent elsewhere."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._rich = _Tireless(highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line."""
        if self.enabled:
            with contextlib.suppress(OSError):  # the disk of a log may be full
                self._rich.print(text, markup=False)

    def warn(self, text: str) -> None:
        """One line that should not be overlooked."""
        self.say(f"warning: {text}")

    @contextlib.contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A progress bar that vanishes when the loop is over.

        Args:
            title: of the loop.
            total: its steps.
            done: steps that were finished before.
        """
        if not (self.enabled and self._rich.is_terminal):
            yield Bar(self, title, total, done, None)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Progress(*columns, console=self._rich, transient=True) as progress:
            yield Bar(self, title, total, done, progress)
