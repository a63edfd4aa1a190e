"""What the watchdog costs, and how fast it names a dead rank, at up to a thousand ranks and more.

    python -m benchmarks.watchdog [--ranks 8,64,256,1024] [--seconds 10] [--timeout 60]
        [--latency 0] [--json FILE]

Rank 0 is this process, which does nothing else; the other ranks live in a few processes more, each
as the watchdog's own two threads with a connection of its own to the store, which is a real one.
Only the end of a rank is another: it notes when it ends, and why, instead of exiting. Measured are

- the start: from the moment that all ranks connect at once until the last has been answered,
- over ``--seconds``: requests and bytes at the store (keys and values, without TCP's headers), and
  what processor time rank 0's watchdog thread and the store's own thread take, in percent of a core,
- from the moment that one rank falls silent, without closing its connection, until the last of the
  others ends; a rank counts as dead after 20 s, or ``--timeout`` if that is less.

``all read all`` is the same exchange where every rank reads every heartbeat, as the watchdog did
before. At 1,024 ranks no machine can do that once a second, so 16 ranks take turns, nothing else
running, and what a round of one of them costs at rank 0 is multiplied by the number of ranks.
"""

import contextlib
import datetime
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from ffcv_r50.config import command_line
from ffcv_r50.distributed import World, heartbeats, open_files
from ffcv_r50.distributed.heartbeats import INTERVAL, Exchange, Fault
from ffcv_r50.distributed.watchdog import Watchdog
from ffcv_r50.errors import InvalidSetting, UserError, exit_with
from ffcv_r50.registry import Options, Range

PROCESSES = 4
"""Processes that the ranks other than 0 are spread over."""
READERS = 16
"""Ranks that take turns in the exchange that is extrapolated."""
ROUNDS = 5
REQUESTS = {"set": 1, "check": 1, "compare_set": 1, "multi_get": 2}
"""Round trips to the store: a read first waits for its keys to exist."""


class Traffic(NamedTuple):
    """What some ranks asked of the store so far."""

    requests: int = 0
    values: int = 0
    """Heartbeats and faults read."""
    bytes: int = 0

    def plus(self, other: "Traffic", sign: int = 1) -> "Traffic":
        """The sum, or the difference where ``sign`` is -1."""
        return Traffic(*(a + sign * b for a, b in zip(self, other, strict=True)))


class CountingStore:
    """A connection to the store that counts what goes over it, and is as slow as a far one.

    Args:
        store: the connection.
        latency: seconds that each round trip takes longer.
    """

    def __init__(self, store: Store, latency: float = 0.0) -> None:
        self._store = store
        self._latency = latency
        self.traffic = Traffic()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def call(*arguments: Any) -> Any:
            if self._latency and name != "set":  # which has no answer to wait for
                time.sleep(self._latency * REQUESTS[name])
            answer = method(*arguments)
            read = answer if isinstance(answer, list) else []
            sent = [a for argument in arguments for a in _listed(argument)]
            size = sum(map(len, sent)) + sum(map(len, read))
            self.traffic = self.traffic.plus(Traffic(REQUESTS[name], len(read), size))
            return answer

        return call


def _listed(argument: Any) -> list[Any]:
    return argument if isinstance(argument, list) else [argument]


class SimulatedRank(Watchdog):
    """The watchdog of one rank, in a process that it shares with others.

    Args:
        rank: this rank.
        size: number of ranks.
        timeout: ``dist.timeout_seconds``.
        store: its connection.
    """

    def __init__(self, rank: int, size: int, timeout: float, store: CountingStore) -> None:
        world = World(rank, size, rank, size, torch.device("cpu"), 1)
        super().__init__(world, timeout, lambda *_: None)
        self.store = store
        self.ended: tuple[float, str] | None = None
        """When, on the machine's monotonic clock, and why."""

    def _connect(self) -> Store:
        return self.store  # type: ignore[return-value]

    def _end(self, fault: Fault) -> None:
        self.ended = self.ended or (time.monotonic(), str(fault))

    @property
    def answered(self) -> bool:
        """Whether the store has answered at least once."""
        return self._answered.is_set()

    def fall_silent(self) -> None:
        """From now on there are no heartbeats; the connection stays open."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def cpu_seconds(self) -> float:
        """Processor time that the watchdog's thread has taken."""
        ident = self._threads[0].ident
        assert ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(ident))


# ----------------------------------------------------------------------------------- the other ranks


def _ranks(
    pipe: Connection, ranks: list[int], size: int, port: int, timeout: float, latency: float
) -> None:
    """Some ranks of the run, and answers to what rank 0's process asks; a process's target."""
    running: list[SimulatedRank] = []
    lock = threading.Lock()

    def start(rank: int) -> None:
        store = CountingStore(_connect(port, timeout), latency)
        watchdog = SimulatedRank(rank, size, timeout, store)
        watchdog.__enter__()
        with lock:
            running.append(watchdog)

    def connect() -> float:
        for rank in ranks:
            threading.Thread(target=start, args=(rank,)).start()
        while len(running) < len(ranks) or not all(w.answered or w.ended for w in running):
            time.sleep(0.01)
        return time.monotonic()

    def ended() -> list[tuple[float, str] | None]:
        return [watchdog.ended for watchdog in running if not watchdog._over.is_set()]

    def silence() -> float:
        last = next(watchdog for watchdog in running if watchdog._world.rank == size - 1)
        last.fall_silent()
        return time.monotonic()

    def traffic() -> Traffic:
        return _sum([watchdog.store for watchdog in running])

    answers = {f.__name__: f for f in (connect, ended, silence, traffic)}
    pipe.send("ready")
    while True:
        while not pipe.poll(0.5 * INTERVAL):
            for watchdog in running:  # as the main loop of a run that makes progress
                watchdog.heartbeat(f"step {watchdog._progress} of epoch 17, with its images")
        question = pipe.recv()
        if question == "exit":
            os._exit(0)
        pipe.send(answers[question]())


def _connect(port: int, timeout: float) -> Store:
    seconds = datetime.timedelta(seconds=timeout)
    return TCPStore("127.0.0.1", port, wait_for_workers=False, timeout=seconds)


def _sum(stores: list[CountingStore]) -> Traffic:
    total = Traffic()
    for store in stores:
        total = total.plus(store.traffic)
    return total


class Others:
    """All ranks but rank 0, in their processes."""

    def __init__(self, size: int, port: int, timeout: float, latency: float) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for first in range(min(PROCESSES, size - 1)):
            ours, theirs = context.Pipe()
            ranks = list(range(1 + first, size, PROCESSES))
            process = context.Process(
                target=_ranks, args=(theirs, ranks, size, port, timeout, latency), daemon=True
            )
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
            if size - 1 in ranks:
                self._last = ours
        for pipe in self._pipes:
            assert pipe.recv() == "ready"

    def ask(self, question: str) -> list[Any]:
        """The answer of every process."""
        for pipe in self._pipes:
            pipe.send(question)
        return [pipe.recv() for pipe in self._pipes]

    def silence_last(self) -> float:
        """The rank with the highest number falls silent; when, on the monotonic clock."""
        self._last.send("silence")
        when: float = self._last.recv()
        return when

    def end(self) -> None:
        """End the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send("exit")
            process.join()


# --------------------------------------------------------------------------------------- measuring


@contextlib.contextmanager
def _server(size: int, timeout: float) -> Iterator[TCPStore]:
    seconds = datetime.timedelta(seconds=timeout)
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=seconds)
    heartbeats.prepare(server, size)
    yield server


def measure(size: int, options: "Simulated") -> dict[str, float]:
    """One row of the table: a run of ``size`` ranks, under the keys of ``--json``."""
    with _server(size, options.timeout) as server:
        others = Others(size, server.port, options.timeout, options.latency / 1000)
        main = SimulatedRank(0, size, options.timeout, CountingStore(server))
        main.__enter__()
        began = time.monotonic()
        connected = max(others.ask("connect")) - began
        _check_none_ended(main, others)
        time.sleep(2 * INTERVAL)  # until the rounds are spread as they will stay

        def now() -> tuple[float, float, float, Traffic]:
            traffic = main.store.traffic
            for answer in others.ask("traffic"):
                traffic = traffic.plus(answer)
            return time.monotonic(), main.cpu_seconds(), time.process_time(), traffic

        before = now()
        time.sleep(options.seconds)
        after = now()
        seconds, thread, process = (b - a for a, b in zip(before[:3], after[:3], strict=True))
        traffic = after[3].plus(before[3], -1)

        _check_none_ended(main, others)
        silent = others.silence_last()
        ended: list[tuple[float, str] | None] = [None]
        while None in ended:
            main.heartbeat("step 1 of epoch 17, with its images")
            time.sleep(0.1)
            ended = [main.ended, *(end for answer in others.ask("ended") for end in answer)]
        ends = [end for end in ended if end is not None]
        assert len(ends) == size - 1
        assert all(why.startswith(f"rank {size - 1}: no heartbeat from ") for _, why in ends)
        main.fall_silent()
        others.end()
    return {
        "ranks": size,
        "start_seconds": connected,
        "requests_per_second": traffic.requests / seconds,
        "values_per_second": traffic.values / seconds,
        "megabytes_per_second": traffic.bytes / seconds / 1e6,
        "watchdog_cpu_percent": 100 * thread / seconds,
        "store_cpu_percent": 100 * (process - thread) / seconds,
        "named_seconds": max(when for when, _ in ends) - silent,
        **_all_read_all(size),
    }


def _check_none_ended(main: SimulatedRank, others: Others) -> None:
    for end in [main.ended, *(end for answer in others.ask("ended") for end in answer)]:
        if end:
            raise UserError(f"--ranks: too many for this machine, where one is lost: {end[1]}")


def _all_read_all(size: int) -> dict[str, float]:
    """What rank 0 would spend if every rank read every heartbeat once a second."""
    with _server(size, 60) as server:
        stores = [CountingStore(_connect(server.port, 60)) for _ in range(min(READERS, size))]
        # Only rank 0 reads all heartbeats, so each of the readers is one.
        readers = [Exchange(store, 0, size, 60) for store in stores]  # type: ignore[arg-type]
        at = f"0|17|{socket.gethostname()}|step 17 of epoch 17, with its images"
        for rank in range(size):
            server.set(f"heartbeat/{rank}", at)
        process, threads = time.process_time(), time.thread_time()
        for number in range(ROUNDS):
            for reader in readers:
                assert reader.round(number, "step 17 of epoch 17, with its images") is None
        # This thread is the other ranks' processor time; the rest of the process is the store's.
        spent = time.process_time() - process - (time.thread_time() - threads)
        traffic, rounds = _sum(stores), ROUNDS * len(readers)
    return {
        "all_values_per_second": traffic.values / rounds * size,
        "all_megabytes_per_second": traffic.bytes / rounds * size / 1e6,
        "all_store_cpu_percent": 100 * spent / rounds * size,
    }


# --------------------------------------------------------------------------------------- the table

COLUMNS = {
    "ranks": ("ranks", "{:,.0f}"),
    "start_seconds": ("start, s", "{:.1f}"),
    "requests_per_second": ("requests/s", "{:,.0f}"),
    "values_per_second": ("values/s", "{:,.0f}"),
    "megabytes_per_second": ("MB/s", "{:.2f}"),
    "watchdog_cpu_percent": ("watchdog, %", "{:.1f}"),
    "store_cpu_percent": ("store, %", "{:.1f}"),
    "named_seconds": ("dead rank named, s", "{:.1f}"),
    "all_values_per_second": ("all read all: values/s", "{:,.0f}"),
    "all_megabytes_per_second": ("MB/s", "{:,.2f}"),
    "all_store_cpu_percent": ("store, %", "{:,.0f}"),
}


class Simulated(Options):
    """What is simulated."""

    ranks: str = "8,64,256,1024"
    """Sizes, at least 2 ranks each."""
    seconds: Annotated[float, Range(above=0)] = 10.0
    """Of each measurement."""
    timeout: Annotated[float, Range(above=0)] = 60.0
    """As `dist.timeout_seconds`."""
    latency: Annotated[float, Range(at_least=0)] = 0.0
    """More of it per round trip, in ms."""
    json_file: Annotated[str | None, Field(alias="json")] = None
    """File for the rows."""

    def model_post_init(self, _context: Any) -> None:
        """Refuse sizes that are none."""
        if not all(size.isdecimal() and int(size) > 1 for size in self.ranks.split(",")):
            raise InvalidSetting("ranks", "expected numbers of at least 2, such as 8,64")


def main() -> None:
    """Measure each size and print the table."""
    options = command_line.read(Simulated, sys.argv[1:], usage=__doc__ or "")
    sizes = [int(size) for size in options.ranks.split(",")]
    open_files.allow(2 * max(sizes))
    # torch looks up the name of each connection's other end, one after the other. A name server that
    # drops some of so many questions would be measured instead; over TCP it answers or refuses.
    os.environ.setdefault("RES_OPTIONS", "use-vc timeout:1 attempts:1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    rows = []
    for size in sizes:
        rows.append(measure(size, options))
        if options.json_file:
            Path(options.json_file).write_text(json.dumps(rows, indent=1) + "\n")
    table = Table(box=None)
    for title, _ in COLUMNS.values():
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*(form.format(row[key]) for key, (_, form) in COLUMNS.items()))
    Console(width=160).print(table)


if __name__ == "__main__":
    exit_with(main)
