"""Signals become one wish: stop soon, with everything saved.

A scheduler that preempts sends SIGTERM (or what it was asked to send: SLURM's ``--signal=USR2``), a
person presses Ctrl-C. Whichever process hears it, the wish travels with the next optimizer step's
sums to all of them (:meth:`ffcv_r50.learner.Learner.step`), so that all stop after the same step.
"""

import os
import signal
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopSignal:
    """Listens for signals while it is entered; only in the main thread.

    A second SIGINT ends the process at once, with the exit code 130 that shells expect of it.
    """

    asked: signal.Signals | None = None
    """The first signal that came; None while none did."""
    _interrupted = False

    def __enter__(self) -> "StopSignal":
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked child: it inherits the handler, and schedulers signal every process
        if number == signal.SIGINT:
            if self._interrupted:
                os._exit(128 + signal.SIGINT)
            self._interrupted = True
        self.asked = self.asked or signal.Signals(number)


class Ballot:
    """Rounds in which all ranks learn whether any of them wishes to stop, one round late.

    For loops without optimizer steps. A round costs a small message over gloo that nobody waits for
    before the next round.
    """

    def __init__(self) -> None:
        self._votes = torch.zeros(1)
        self._pending: dist.Work | None = None

    def cast(self, stop: bool) -> bool:
        """Vote in this round, which every rank must hold.

        Returns:
            Whether some rank wished to stop in the round before (alone: in this one).
        """
        if not dist.is_initialized():
            return stop
        before = self.close()
        self._votes.fill_(float(stop))
        self._pending = dist.all_reduce(self._votes, async_op=True)
        return before

    def close(self) -> bool:
        """Wait for the last round; returns whether some rank wished to stop in it."""
        if self._pending is None:
            return False
        self._pending.wait()
        self._pending = None
        return bool(self._votes.item())
