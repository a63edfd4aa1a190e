"""A signal at any rank requests a stop: all ranks stop after the same step, with a checkpoint.

A scheduler that preempts sends SIGTERM (or what it was asked to send: SLURM's ``--signal=USR2``), a
user presses Ctrl-C or closes the terminal. Whichever process receives it, the request is summed over
all ranks with the next optimizer step (:class:`ffcv_r50.training.step.TrainStep`).
"""

import os
import signal
import socket
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


# A forked child would write its signals into its parent's socket.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class StopSignal:
    """Handles signals while it is entered; only in the main thread.

    A second SIGINT ends the process at once, with the exit code 130 that shells expect of it; also
    while the main thread waits for its peers in a collective, where Python's handlers do not run.
    """

    asked: signal.Signals | None = None
    """The first signal received; None while there was none."""

    def __enter__(self) -> "StopSignal":
        self._process = os.getpid()
        received, self._signals = socket.socketpair()
        self._signals.setblocking(False)
        self._counting = threading.Thread(
            target=_exit_at_second_interrupt, args=(received,), name="signals", daemon=True
        )
        self._counting.start()
        self._wakeup_before = signal.set_wakeup_fd(self._signals.fileno())
        self._before: dict[signal.Signals, Any] = {}
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup has SIGHUP ignored
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._signals.close()
        self._counting.join()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:  # a forked child inherits the handler, but is not meant
            self.asked = self.asked or signal.Signals(number)


def _exit_at_second_interrupt(received: socket.socket) -> None:
    """Read the signals that the interpreter writes as they arrive, until its end is closed."""
    interrupts = 0
    with received:
        while numbers := received.recv(64):
            interrupts += numbers.count(signal.SIGINT)
            if interrupts > 1:
                os.write(2, b"interrupted again: ended at once; the newest checkpoint is kept\n")
                os._exit(128 + signal.SIGINT)


class StopVote:
    """An all-reduce a round of whether any rank requests a stop; the result comes a round later.

    For loops without optimizer steps. A round costs a small message over gloo that nobody waits for
    before the next round.
    """

    def __init__(self) -> None:
        self._votes = torch.zeros(1)
        self._pending: dist.Work | None = None

    def cast(self, stop: bool) -> bool:
        """Vote in this round, which every rank must hold.

        Returns:
            Whether some rank requested a stop in the round before (a single process: in this one).
        """
        if not dist.is_initialized():
            return stop
        before = self.close()
        self._votes.fill_(float(stop))
        self._pending = dist.all_reduce(self._votes, async_op=True)
        return before

    def close(self) -> bool:
        """Wait for the last round; returns whether some rank requested a stop in it."""
        if self._pending is None:
            return False
        self._pending.wait()
        self._pending = None
        return bool(self._votes.item())
