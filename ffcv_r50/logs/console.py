"""What a person sees: a progress bar on a terminal, plain lines elsewhere; one process speaks."""

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ffcv_r50.errors import discard_output, one_line
from ffcv_r50.logs.row import EpochRow

PLAIN_SECONDS = 10.0
"""Between two plain progress lines."""


def duration(seconds: float) -> str:
    """75 -> 1:15, 3675 -> 1:01:15; "?" where the rows of a run say what is no time."""
    if not math.isfinite(seconds):
        return "?"
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
        discard_output(sys.stdout)


class Console:
    """Speaks for the run where ``enabled`` (rank 0), is silent elsewhere."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._rich = _Tireless(highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line."""
        if self.enabled:
            with contextlib.suppress(OSError):  # the disk of a log may be full
                self._rich.print(one_line(text), markup=False)

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


def epoch_line(row: EpochRow, epochs: int) -> str:
    """What an epoch came to, and how long the rest will take at its pace.

    Args:
        row: of the epoch.
        epochs: of the whole run.
    """
    metrics, seconds = row.validation, row.epoch_seconds + row.eval_seconds
    averages = "".join(
        f"{name} top-1 {average.top_1:6.2f} %  " for name, average in row.averages.items()
    )
    return (
        f"epoch {row.epoch + 1:>{len(str(epochs))}}/{epochs}  {row.resolution} px  "
        f"lr {row.lr:.4f}  loss {row.train_loss:.4f}  val loss {metrics.loss:.4f}  "
        f"top-1 {metrics.top_1:6.2f} %  top-5 {metrics.top_5:6.2f} %  {averages}"
        f"{row.images_per_second:,.0f} images/s  data wait {row.data_wait_fraction:.0%}  "
        f"{duration(seconds)}, {duration((epochs - row.epoch - 1) * seconds)} left"
    )


def finished(row: Mapping[str, Any], best: float, seconds: float, seen: str) -> str:
    """The last line of a run.

    Args:
        row: the last one of its log.
        best: top-1 in % of its best epoch.
        seconds: that all starts of it took.
        seen: how many images of which kind it was evaluated on, and how.
    """
    top_1, top_5 = (row.get(key, float("nan")) for key in ("top_1", "top_5"))
    return (
        f"finished: top-1 {top_1:.2f} %, top-5 {top_5:.2f} % on all {seen}; best epoch "
        f"{best:.2f} %; {duration(seconds)} in all"
    )
