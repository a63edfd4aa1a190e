"""Ends every rank of a run when one of them dies, hangs or fails, with one line that names it.

Without it a rank that waits for a dead one waits until the collective's time-out and then reports
that it waited, not for whom. Here two threads of every rank take part in the exchange of
:mod:`ffcv_r50.distributed.heartbeats`, whatever the main thread waits for: one exchanges, the other
ends the process where the exchange itself is blocked.
"""

import contextlib
import datetime
import os
import sys
import threading
import traceback
from collections.abc import Callable

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from ffcv_r50 import distributed
from ffcv_r50.distributed import heartbeats
from ffcv_r50.distributed.heartbeats import INTERVAL, Exchange, Fault
from ffcv_r50.errors import BAD_INPUT, FAULT, RunFault, Stopped, UserError

GRACE_SECONDS = 5.0
"""Seconds that rank 0, which serves the store, gives the others to read it before it ends."""


class Watchdog:
    """One rank's watchdog. :meth:`heartbeat` from the main loop says that it makes progress.

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
        self._on_fault = on_fault
        self._progress = 0
        self._at = "the start"
        self._over = threading.Event()
        self._answered = threading.Event()
        self._ending = threading.Event()
        self._exchange: Exchange | None = None
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Watchdog":
        if self._world.size > 1:
            exchange = Exchange(self._connect(), self._world.rank, self._world.size, self._timeout)
            exchanging = threading.Thread(
                target=self._run, args=(exchange,), name="watchdog", daemon=True
            )
            deadline = threading.Thread(
                target=self._end_if_blocked,
                args=(exchanging, exchange.dead_seconds + INTERVAL),
                name="watchdog deadline",
                daemon=True,
            )
            self._exchange, self._threads = exchange, [exchanging, deadline]
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._exchange is None:
            return
        if error is not None and not isinstance(error, Stopped):
            self._report_error(self._exchange, error)
        else:
            with contextlib.suppress(RuntimeError):  # rank 0 may have left, and the store with it
                self._leave(self._exchange)
        self._over.set()
        for thread in self._threads:
            thread.join(GRACE_SECONDS)

    def heartbeat(self, at: str) -> None:
        """The main loop got to ``at`` ("step 17 of epoch 3")."""
        self._progress += 1
        self._at = at

    def _connect(self) -> Store:
        """A store of our own: the process group's may not be used from another thread."""
        timeout = datetime.timedelta(seconds=self._timeout)
        address = os.environ["MASTER_ADDR"]
        server = None
        if self._world.is_main:
            server = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=timeout)
            heartbeats.prepare(server, self._world.size)
        port = distributed.broadcast_object(server.port if server else None)
        # On rank 0's own machine its address may lead elsewhere, so rank 0 uses the server itself.
        return server or TCPStore(address, port, wait_for_workers=False, timeout=timeout)

    def _leave(self, exchange: Exchange) -> None:
        exchange.leave()
        if self._world.is_main:  # it serves the store: last, but without waiting for a dead rank
            for _ in range(int(GRACE_SECONDS / 0.05)):
                if exchange.all_left() or self._over.wait(0.05):
                    break

    def _report_error(self, exchange: Exchange, error: BaseException) -> None:
        """Publish why this rank ends, unless another rank's end is the cause."""
        if isinstance(error, RunFault) and error.everywhere:
            return
        if isinstance(error, RuntimeError):
            # Most likely a collective that broke because a peer is gone. Within this time rank 0
            # names it, and this rank's watchdog ends the process.
            self._over.wait(exchange.dead_seconds + 4 * INTERVAL)
        code = BAD_INPUT if isinstance(error, UserError) else FAULT
        known = isinstance(error, (UserError, RunFault))
        reason = str(error) if known else _describe(error)
        with contextlib.suppress(RuntimeError):
            exchange.report(Fault(self._world.rank, code, "failed", reason))
        self._over.wait(GRACE_SECONDS if self._world.is_main else 2 * INTERVAL)

    # -------------------------------------------------------------------------------- the threads

    def _run(self, exchange: Exchange) -> None:
        while True:
            try:
                fault = exchange.round(self._progress, self._at)
            except RuntimeError as error:
                fault = Fault(0, FAULT, "lost", f"can no longer be reached ({_line(str(error))})")
            except Exception as error:  # a bug: no rank may go on without its watchdog
                traceback.print_exc()
                reason = f"its watchdog failed ({_describe(error)})"
                fault = Fault(self._world.rank, FAULT, "lost", reason)
            if self._over.is_set():
                return
            if fault:
                # After an error of this rank the main thread is on its way out, with a traceback.
                if fault.rank != self._world.rank or fault.state == "lost":
                    self._end(fault)
                return
            self._answered.set()
            if self._over.wait(INTERVAL):
                return

    def _end_if_blocked(self, exchanging: threading.Thread, seconds: float) -> None:
        """End this process when rank 0, which serves the store, no longer answers.

        Counts its own rounds, so that a process that was stopped for a while blames nobody for it.
        """
        silent = 0.0
        while not self._over.wait(INTERVAL) and exchanging.is_alive():
            silent = 0.0 if self._answered.is_set() else silent + INTERVAL
            self._answered.clear()
            if silent > seconds:
                reason = f"has not answered for {silent:.0f} s: it hangs, or its network is down"
                self._end(Fault(0, FAULT, "lost", reason))

    def _end(self, fault: Fault) -> None:
        """End this process: its main thread may be waiting for a rank that will never come."""
        try:
            if not self._ending.is_set():  # else on_fault is blocked, say by a file system
                self._ending.set()
                self._announce(fault)
        finally:
            os._exit(fault.code)

    def _announce(self, fault: Fault) -> None:
        # Rank 0 prints for all; where it no longer can, each of the others does.
        if self._world.is_main or (fault.rank == 0 and fault.state == "lost"):
            with contextlib.suppress(OSError):
                print(f"error: {fault}", file=sys.stderr, flush=True)
        if self._world.is_main:
            with contextlib.suppress(Exception):
                self._on_fault(fault.state, fault.code, str(fault))
            # The others read the store, which ends with this process.
            self._over.wait(2 * INTERVAL)
        sys.stdout.flush()


def _describe(error: BaseException) -> str:
    return _line(f"{type(error).__name__}: {error}")


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
