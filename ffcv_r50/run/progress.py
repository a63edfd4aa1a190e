"""Where a run is, how long it waited for its data, and when it saves."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass
class Progress:
    """Where a run is; part of its checkpoints."""

    epoch: int = 0
    """Epochs that are trained and evaluated."""
    step: int = 0
    """Steps of the current epoch that are done; all of them where only its evaluation is left."""
    skipped: int = 0
    """Of those steps, how many a rollback left out."""
    loss_sum: float = 0.0
    """Of those steps that were not left out."""
    train_seconds: float = 0.0
    """Spent on them."""
    wait_seconds: float = 0.0
    """Of these, waiting for data."""
    best_top_1: float = -1.0
    run_seconds: float = 0.0
    """Wall-clock time that all starts of the run have used."""
    overflows: int = 0
    """Steps skipped because an fp16 gradient overflowed."""
    rollbacks: int = 0

    def end_epoch(self) -> None:
        """Go on with the next one."""
        self.epoch, self.step, self.skipped = self.epoch + 1, 0, 0
        self.loss_sum = self.train_seconds = self.wait_seconds = 0.0

    def scale_steps(self, factor: float) -> None:
        """Go on after the same samples of the epoch, in steps of another size.

        Args:
            factor: the old batch size over the new one.
        """
        self.step = int(self.step * factor)
        self.skipped = int(self.skipped * factor)
        self.loss_sum *= factor


class TimedIterator(Iterator[T]):
    """An iterator that adds up how long its consumer waited for it.

    Args:
        iterator: to wait for.
        arrived: called after each item.
    """

    def __init__(self, iterator: Iterator[T], arrived: Callable[[], None] = lambda: None) -> None:
        self._iterator = iterator
        self._arrived = arrived
        self.seconds = 0.0

    def __next__(self) -> T:
        """The next item."""
        began = time.perf_counter()
        item = next(self._iterator)
        self.seconds += time.perf_counter() - began
        self._arrived()
        return item


class SaveSchedule:
    """When a checkpoint within an epoch is due.

    Args:
        every: steps or minutes.
        unit: which of them.
    """

    def __init__(self, every: float, unit: str) -> None:
        self._every = every
        self._unit = unit
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to save after ``step`` steps of the epoch."""
        if self._unit == "steps":
            return step % self._every == 0
        now = time.monotonic()
        if now - self._last < 60 * self._every:
            return False
        self._last = now
        return True


def ratio(a: float, b: float) -> float:
    """a / b; not a number for an epoch of which a rollback left out every step."""
    return a / b if b else float("nan")
