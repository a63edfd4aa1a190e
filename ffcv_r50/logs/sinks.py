"""Where the numbers of a run go: sinks, which a recipe lists by the names they register here.

The console and ``log.jsonl`` are always there. A sink is called on rank 0 alone. What it does may fail
(a full disk, a server that is gone): that never stops training.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ffcv_r50.logs.row import EpochRow
from ffcv_r50.registry import Options, Registry


class Sink(Protocol):
    """Takes the numbers of a run as they come."""

    def step(self, number: int, values: Mapping[str, float]) -> None:
        """An optimizer step: its number from the run's start, ``loss``, ``gradient_norm``, and the
        values of the schedule. Steps come in order, but for those after a :meth:`rewind`.
        """
        ...

    def epoch(self, row: EpochRow) -> None:
        """An epoch, trained and evaluated."""
        ...

    def rewind(self, epochs: int, steps: int) -> None:
        """The run begins, or continues, after so many epochs and (from its start) so many steps: what
        came later is forgotten.
        """
        ...

    def close(self) -> None:
        """Nothing comes any more."""
        ...


class SinkOptions(Options):
    """The options of a sink."""

    def build(self, folder: Path) -> Sink:
        """The sink itself.

        Args:
            folder: of the run.
        """
        raise NotImplementedError


SINKS: Registry[SinkOptions] = Registry("log sink")


class Sinks:
    """Several as one. One that fails is named once, and called again next time.

    Args:
        sinks: in the order they are called.
        warn: is given a line about a sink that failed.
    """

    def __init__(self, sinks: Sequence[Sink], warn: Callable[[str], None]) -> None:
        self._sinks = sinks
        self._warn = warn
        self._failed: set[Sink] = set()

    def step(self, number: int, values: Mapping[str, float]) -> None:
        """See :class:`Sink`."""
        self._each(lambda sink: sink.step(number, values))

    def epoch(self, row: EpochRow) -> None:
        """See :class:`Sink`."""
        self._each(lambda sink: sink.epoch(row))

    def rewind(self, epochs: int, steps: int) -> None:
        """See :class:`Sink`."""
        self._each(lambda sink: sink.rewind(epochs, steps))

    def close(self) -> None:
        """See :class:`Sink`."""
        self._each(lambda sink: sink.close())

    def _each(self, call: Callable[[Sink], None]) -> None:
        for sink in self._sinks:
            try:
                call(sink)
            except Exception as error:  # somebody else's code, and never worth a run
                if sink not in self._failed:
                    self._failed.add(sink)
                    self._warn(
                        f"log sink {type(sink).__name__}: {type(error).__name__}: {error}; "
                        "training goes on"
                    )
