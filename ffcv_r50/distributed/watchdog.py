"""Watches over the ranks of a run: whoever dies, hangs or fails, all learn of it and end.

Without it a rank that waits for a dead one waits until the collective's time-out and then reports
that it waited, not for whom. Here every rank publishes its progress once a second through a small
key-value store; every rank reads all of them, and the first fault that it sees ends it with one line
that names the rank.
"""

import contextlib
import datetime
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from ffcv_r50 import distributed
from ffcv_r50.errors import BAD_INPUT, FAULT, RunFault, Stopped, UserError

INTERVAL = 1.0
"""Seconds between two heartbeats."""
DEAD_SECONDS = 20.0
"""A rank whose heart has not beaten for so long (or for the run's time-out, if that is shorter) is
dead, or its machine or network is gone."""
GRACE_SECONDS = 5.0
"""Seconds that a failing rank gives the others to hear of it."""


class Watchdog:
    """The watch of one rank. :meth:`beat` from the main loop tells that it makes progress.

    Args:
        world: this process among its peers.
        timeout_seconds: how long a rank may make no progress before it counts as hung.
        on_fault: called on rank 0 before the process ends, with ``lost`` (a rank died or hangs) or
            ``failed`` (it gave a reason), the exit code, and the line that says what happened.
    """

    def __init__(
        self,
        world: distributed.World,
        timeout_seconds: float,
        on_fault: Callable[[str, int, str], None],
    ) -> None:
        self._world = world
        self._timeout = timeout_seconds
        self._dead_seconds = min(DEAD_SECONDS, timeout_seconds)
        self._on_fault = on_fault
        self._beats = 0
        self._what = "starting"
        self._over = threading.Event()
        self._store: Store | None = None
        self._threads: list[threading.Thread] = []
        self._heard_at = time.monotonic()

    def __enter__(self) -> "Watchdog":
        if self._world.size > 1:
            self._store = self._connect()
            self._heard_at = time.monotonic()
            for work in (self._run, self._guard):
                thread = threading.Thread(target=work, name="watch", daemon=True)
                thread.start()
                self._threads.append(thread)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._store is None:
            return
        if error is not None and not isinstance(error, Stopped):
            self._report_error(error)
        else:
            with contextlib.suppress(RuntimeError):  # rank 0 may be gone already, with the store
                self._store.set(f"done/{self._world.rank}", "1")
                self._leave_together()
        self._over.set()
        for thread in self._threads:
            thread.join(GRACE_SECONDS)

    def heartbeat(self, what: str) -> None:
        """The main loop got to ``what`` ("step 17 of epoch 3")."""
        self._beats += 1
        self._what = what

    def _connect(self) -> Store:
        """A store of our own: the process group's is not ours to use from another thread."""
        timeout = datetime.timedelta(seconds=self._timeout)
        address = os.environ["MASTER_ADDR"]
        server = None
        if self._world.is_main:
            server = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        port = distributed.broadcast_object(server.port if server else None)
        # Its own address may be another machine's view of rank 0, so that one uses its server.
        store = server or TCPStore(address, port, wait_for_workers=False, timeout=timeout)
        store.set(f"beat/{self._world.rank}", f"0|0|starting|{socket.gethostname()}")
        return store

    def _leave_together(self) -> None:
        """Rank 0 serves the store: it leaves last, a few seconds after the others at most."""
        assert self._store is not None
        if self._world.is_main:
            keys = [f"done/{rank}" for rank in range(self._world.size)]
            deadline = time.monotonic() + GRACE_SECONDS
            while not self._store.check(keys) and time.monotonic() < deadline:
                self._over.wait(0.05)

    def _report_error(self, error: BaseException) -> None:
        """Publish why this rank ends, or find out whose end made it end."""
        assert self._store is not None
        if isinstance(error, RunFault) and error.everywhere:
            return
        if isinstance(error, RuntimeError):
            # Most likely a collective that broke, and here the consequence of a fault elsewhere:
            # within this time the watch's thread names the rank, and ends this process.
            self._over.wait(self._dead_seconds + 2 * INTERVAL)
        code = BAD_INPUT if isinstance(error, UserError) else FAULT
        known = isinstance(error, (UserError, RunFault))
        reason = str(error) if known else _short(f"{type(error).__name__}: {error}")
        with contextlib.suppress(RuntimeError):
            self._store.compare_set("fault", "", f"{self._world.rank}|{code}|{reason}")
        self._over.wait(GRACE_SECONDS if self._world.is_main else 2 * INTERVAL)

    def _run(self) -> None:
        assert self._store is not None
        ranks = range(self._world.size)
        seen = {rank: _Peer() for rank in ranks}
        ticks = 0
        while not self._over.wait(INTERVAL):
            ticks += 1
            try:
                self._store.set(
                    f"beat/{self._world.rank}",
                    f"{ticks}|{self._beats}|{self._what}|{socket.gethostname()}",
                )
                if self._store.check(["fault"]):
                    who, code, reason = self._store.get("fault").decode().split("|", 2)
                    if who == str(self._world.rank):
                        self._heard_at = math.inf  # nobody needs to guard what ends by itself
                        return  # the main thread is on its way out, with its traceback
                    self._end(who, code, reason, "failed")
                for rank, raw in zip(
                    ranks, self._store.multi_get([f"beat/{rank}" for rank in ranks]), strict=True
                ):
                    seen[rank].update(*raw.decode().split("|"))
                self._heard_at = time.monotonic()
            except RuntimeError as error:
                if not self._over.is_set():
                    self._end("0", str(FAULT), f"cannot be reached any more ({_short(str(error))})")
                return
            self._check_peers(seen)

    def _guard(self) -> None:
        """End this process when rank 0, which serves the store, no longer answers."""
        while not self._over.wait(INTERVAL):
            silent = time.monotonic() - self._heard_at
            if silent > self._dead_seconds + INTERVAL:
                self._end("0", str(FAULT), f"has not answered for {silent:.0f} s: it hangs")

    def _check_peers(self, seen: "dict[int, _Peer]") -> None:
        now = time.monotonic()
        assert self._store is not None
        for rank, other in seen.items():
            if now - other.alive_at > self._dead_seconds and not self._store.check(
                [f"done/{rank}"]
            ):
                self._end(
                    str(rank),
                    str(FAULT),
                    f"on {other.host} has not been heard of for {now - other.alive_at:.0f} s: it died, "
                    f"or its machine or network is gone; it was at {other.what}",
                )
        if all(now - other.moved_at > self._timeout for other in seen.values()):
            least = min(other.beats for other in seen.values())
            behind = [rank for rank, other in seen.items() if other.beats == least]
            names = ", ".join(map(str, behind))
            self._end(
                str(behind[0]),
                str(FAULT),
                f"hangs: no rank has moved for {self._timeout:.0f} s, rank {names} is furthest behind, "
                f"at {seen[behind[0]].what} on {seen[behind[0]].host}",
            )

    def _end(self, rank: str, code: str, reason: str, state: str = "lost") -> None:
        """End this process: its main thread may be waiting for a rank that will never come."""
        line = reason if rank == str(self._world.rank) else f"rank {rank}: {reason}"
        # Rank 0 speaks for all, and of itself only while it lives.
        if self._world.is_main or (rank == "0" and state == "lost"):
            print(f"error: {line}", file=sys.stderr, flush=True)
        if self._world.is_main:
            with contextlib.suppress(Exception):
                self._on_fault(state, int(code), line)
            # The others read the store, which ends with this process.
            self._over.wait(2 * INTERVAL)
        sys.stdout.flush()
        os._exit(int(code))


class _Peer:
    """What was last seen of a rank."""

    def __init__(self) -> None:
        self.alive_at = self.moved_at = time.monotonic()
        self.ticks = self.beats = -1
        self.what = self.host = ""

    def update(self, ticks: str, beats: str, what: str, host: str) -> None:
        now = time.monotonic()
        if int(ticks) != self.ticks:
            self.ticks, self.alive_at = int(ticks), now
        if int(beats) != self.beats:
            self.beats, self.moved_at = int(beats), now
        self.what, self.host = what, host


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
