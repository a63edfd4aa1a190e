"""Gives sinks what a run logs, without the training ever waiting for them."""

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ffcv_r50.files import parse_json, read_record
from ffcv_r50.logs import jsonl
from ffcv_r50.logs.sinks import Sink

CLOSE_SECONDS = 30.0
"""That the end of a run waits for a sink, at most."""


class _Tail:
    """Reads the rows of a log as they come.

    Args:
        path: of JSON lines.
        key: the field with a row's number.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key
        self._offset = 0
        self.done = 0
        """Rows with a lower number have been taken."""

    def back_to(self, number: int) -> None:
        """Go on with the row of this number."""
        self._offset, self.done = 0, number

    def read(self) -> bytes:
        """What has been written since, whole lines."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                return file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return b""

    def rows(self, content: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows of what was read; each counts as taken when the next is asked for."""
        for line in content.splitlines(keepends=True):
            with contextlib.suppress(ValueError):  # a damaged line is nobody's
                row = parse_json(line)
                if self.done <= (number := jsonl.number(row, self._key)) < math.inf:
                    yield int(number), row
                    self.done = int(number) + 1
            self._offset += len(line) + (not line.endswith(b"\n"))


class Follower:
    """Gives a sink the rows of a run's logs, in a thread of its own.

    How far it got is kept in the folder of the run (``sinks/NAME.json``).

    Args:
        name: that recipes know the sink by.
        sink: used by the thread alone.
        folder: of the run.
        warn: is given a line when the sink first fails.
    """

    def __init__(self, name: str, sink: Sink, folder: Path, warn: Callable[[str], None]) -> None:
        self._name = name
        self._sink = sink
        self._warn = warn
        self._state = folder / "sinks" / f"{name}.json"
        self._steps = _Tail(folder / "steps.jsonl", "step")
        self._epochs = _Tail(folder / "log.jsonl", "epoch")
        self._failed = False
        self._changed = threading.Condition()
        # Guarded by `changed`.
        self._news = self._closing = False
        self._rewound: tuple[int, int] | None = None
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)

    def rewind(self, epochs: int, steps: int) -> None:
        """The logs end after so many epochs and steps; the first call begins."""
        with self._changed:
            self._rewound = epochs, steps
        self.notify()
        if self._thread.ident is None:
            self._thread.start()

    def notify(self) -> None:
        """There is something new in the logs."""
        with self._changed:
            self._news = True
            self._changed.notify()

    def close(self) -> None:
        """Let it take what is there, for some time, and close it."""
        if self._thread.ident is None:
            return
        with self._changed:
            self._closing = True
        self.notify()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive() and not self._failed:
            self._failed = True
            self._warn(
                f"log sink {self._name}: is not ready after {CLOSE_SECONDS:.0f} s; what it lacks it "
                "gets when the same command is run again"
            )

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._news)
                self._news, closing = False, self._closing
            try:
                self._follow()
                if closing:
                    self._sink.close()
            except Exception as error:  # somebody else's code, and never worth a run
                if not self._failed:
                    self._failed = True
                    self._warn(
                        f"log sink {self._name}: {type(error).__name__}: {error}; training goes on"
                    )
            if closing:
                return

    def _follow(self) -> None:
        with self._changed:
            rewound = self._rewound
        if rewound is not None:
            self._begin(*rewound)
            with self._changed:
                if self._rewound != rewound:
                    return
                self._rewound = None
        before = self._steps.done, self._epochs.done
        try:
            for tail, take in ((self._steps, self._sink.step), (self._epochs, self._sink.epoch)):
                content = tail.read()
                if self._rewound is not None:  # the log may be another one by now
                    return
                for number, row in tail.rows(content):
                    if tail is self._epochs or "loss" in row:
                        take(number, row)
        finally:
            if before != (self._steps.done, self._epochs.done):
                self._keep()

    def _begin(self, epochs: int, steps: int) -> None:
        """Go on where the sink and the logs agree."""
        kept = read_record(self._state)
        epochs, steps = min(epochs, kept.get("epochs", 0)), min(steps, kept.get("steps", 0))
        epochs, steps = self._sink.rewind(epochs, steps) or (epochs, steps)
        self._epochs.back_to(epochs)
        self._steps.back_to(steps)
        self._keep()

    def _keep(self) -> None:
        self._state.parent.mkdir(exist_ok=True)
        row = {"epochs": self._epochs.done, "steps": self._steps.done}
        self._state.write_text(json.dumps(row))  # where it is lost, the sink is given all again
