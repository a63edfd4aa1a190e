"""Sinks that fail, hang and come back: each row arrives once, and nobody waits."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ffcv_r50.logs import jsonl
from ffcv_r50.logs.jsonl import StepLog
from ffcv_r50.logs.row import Measured, StepRow
from ffcv_r50.logs.sinks import follower
from ffcv_r50.logs.sinks.follower import Follower


class Memory:
    """A sink that remembers, and fails on demand."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.epochs: list[int] = []
        self.rewound: list[tuple[int, int]] = []
        self.failures = 0
        self.closed = False

    def step(self, number: int, values: Mapping[str, Any]) -> None:
        self._fail()
        assert values["loss"] == number / 10
        self.steps.append(number)

    def epoch(self, number: int, values: Mapping[str, Any]) -> None:
        self._fail()
        self.epochs.append(number)

    def rewind(self, epochs: int, steps: int) -> None:
        self.rewound.append((epochs, steps))
        self.epochs = [number for number in self.epochs if number < epochs]
        self.steps = [number for number in self.steps if number < steps]

    def close(self) -> None:
        self.closed = True

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the server is gone")


def row(number: int, measured: bool = True) -> StepRow:
    values = Measured(number / 4, number / 10, 1.0, 100.0, 0.1) if measured else None
    return StepRow(step=number, lr=0.1, resolution=32, fingerprint="0" * 16, measured=values)


class Run:
    """One start of a run with a sink."""

    def __init__(self, folder: Path, sink: Any, epochs: int = 0, steps: int = 0) -> None:
        self.warnings: list[str] = []
        self.log = StepLog(folder / "steps.jsonl", self.warnings.append)
        self.epochs = folder / "log.jsonl"
        self.follower = Follower("memory", sink, folder, self.warnings.append)
        self.rewind(epochs, steps)

    def rewind(self, epochs: int, steps: int) -> None:
        self.log.rewind(steps)
        jsonl.rewind(self.epochs, epochs)
        self.follower.rewind(epochs, steps)

    def steps(self, *numbers: int) -> None:
        for number in numbers:
            self.log.step(row(number))
            self.follower.notify()

    def epoch(self, number: int) -> None:
        jsonl.append(self.epochs, {"epoch": number, "top_1": 50.0})
        self.follower.notify()


def test_rows_arrive_once_and_in_order_whatever_fails(tmp_path: Path) -> None:
    sink = Memory()
    sink.failures = 3
    run = Run(tmp_path, sink)
    run.steps(*range(20))
    run.epoch(0)
    run.log.step(row(20, measured=False))
    run.steps(21)
    for _ in range(3):  # each is a try
        run.follower.notify()
    run.epoch(1)
    while sink.failures:
        run.follower.notify()
    run.follower.close()
    assert sink.steps == [*range(20), 21]
    assert sink.epochs == [0, 1]
    assert sink.closed
    assert run.warnings == [
        "log sink memory: ConnectionError: the server is gone; training goes on"
    ]


def test_a_sink_that_failed_to_the_end_gets_all_with_the_next_start(tmp_path: Path) -> None:
    sink = Memory()
    sink.failures = 10**9
    run = Run(tmp_path, sink)
    run.steps(0, 1, 2)
    run.epoch(0)
    run.follower.close()
    assert sink.steps == []
    sink.failures = 0
    run = Run(tmp_path, sink, 1, 3)
    run.steps(3)
    run.follower.close()
    assert (sink.steps, sink.epochs) == ([0, 1, 2, 3], [0])


def test_a_killed_start_leaves_each_row_once(tmp_path: Path) -> None:
    """The state is from after step 3; the sink has more, and how far it got was kept before that."""
    sink = Memory()
    run = Run(tmp_path, sink)
    run.steps(0, 1, 2, 3, 4, 5)
    run.follower.close()
    state = tmp_path / "sinks" / "memory.json"
    assert json.loads(state.read_text()) == {"epochs": 0, "steps": 6}
    state.write_text('{"epochs": 0, "steps": 2}')
    run = Run(tmp_path, sink, 0, 4)
    run.steps(4, 5, 6)
    run.follower.close()
    assert sink.rewound == [(0, 0), (0, 2)]
    assert sink.steps == [0, 1, 2, 3, 4, 5, 6]


def test_going_back_while_it_runs(tmp_path: Path) -> None:
    taken = threading.Event()

    class Noting(Memory):
        def step(self, number: int, values: Mapping[str, Any]) -> None:
            super().step(number, values)
            if number == 9:
                taken.set()

    sink = Noting()
    run = Run(tmp_path, sink)
    run.steps(*range(10))
    assert taken.wait(60)  # or there would be nothing to forget
    run.rewind(0, 4)
    run.steps(8, 9)  # a rollback leaves some out
    run.follower.close()
    assert sink.steps == [0, 1, 2, 3, 8, 9]


def test_a_sink_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "CLOSE_SECONDS", 0.01)
    hanging, forever = threading.Event(), threading.Event()

    class Hanging(Memory):
        def step(self, number: int, values: Mapping[str, Any]) -> None:
            hanging.set()
            forever.wait()

    run = Run(tmp_path, Hanging())
    run.steps(*range(100))
    assert hanging.wait(60)
    run.follower.close()
    assert run.warnings == [
        "log sink memory: is not ready after 0 s; what it lacks it gets when the same command is run "
        "again"
    ]
    forever.set()
