"""What the watchdogs of a run's ranks tell each other, through one key-value store at rank 0.

Once a second every rank publishes a heartbeat and reads those of the ranks that it watches. Rank 0
watches all ranks, every other rank watches rank 0 alone. Whoever finds a fault publishes it, under
one key that every rank reads along with the heartbeats. What the store has to answer thus grows
with the number of ranks; if each watched all others, it would grow with the square.

Every key that is read exists before the first rank connects: a read never waits for a rank.
"""

import socket
import time
from typing import Literal, NamedTuple

from torch.distributed import Store  # type: ignore[attr-defined]

from ffcv_r50.errors import FAULT

INTERVAL = 1.0
"""Seconds between two heartbeats."""
DEAD_SECONDS = 20.0
"""A rank without a heartbeat for so long (or for the run's time-out, if that is shorter) is dead, or
its machine or network is down."""
NAMED_RANKS = 8
"""Of ranks that hang together, so many are listed."""

_FAULT = "fault"


class Fault(NamedTuple):
    """Why the run ends."""

    rank: int
    """The rank that caused it."""
    code: int
    """The exit code of every rank."""
    state: Literal["lost", "failed"]
    """``lost``: the rank died or hangs; ``failed``: it said itself why it ends."""
    reason: str

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.reason}"


class Exchange:
    """One rank's part in it.

    Args:
        store: this rank's connection to the store that :func:`prepare` was called with.
        rank: this rank.
        size: number of ranks.
        timeout_seconds: how long a rank may make no progress before it counts as hung.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout_seconds: float) -> None:
        self._store = store
        self._rank = rank
        self._size = size
        self._timeout = timeout_seconds
        self.dead_seconds = min(DEAD_SECONDS, timeout_seconds)
        self._host = socket.gethostname()
        self._count = 0
        self._watched = {peer: _Peer() for peer in (range(size) if rank == 0 else (0,))}
        self._clock, self._read_at = 0.0, time.monotonic()

    def round(self, progress: int, at: str) -> Fault | None:
        """Publish this rank's heartbeat and look at those of the ranks that it watches.

        Args:
            progress: differs from the last call's if the rank made progress in between; the rank
                with the lowest number is the one that the others wait for.
            at: what the rank is doing.

        Returns:
            The run's first fault, whoever found it; None as long as there is none.

        Raises:
            RuntimeError: the store cannot be reached.
        """
        self._count += 1
        self._store.set(_heartbeat(self._rank), f"{self._count}|{progress}|{self._host}|{at}")
        fault, *heartbeats = self._store.multi_get(
            [_FAULT, *(_heartbeat(rank) for rank in self._watched)]
        )
        self._advance_clock()
        for peer, heartbeat in zip(self._watched.values(), heartbeats, strict=True):
            peer.update(heartbeat.decode(), self._clock)
        if fault:
            return _decode(fault)
        found = self._dead() or self._hung()
        return self.report(found) if found else None

    def report(self, fault: Fault) -> Fault:
        """Publish a fault; returns the run's first one, which may be another."""
        fields = "|".join(map(str, fault))
        return _decode(self._store.compare_set(_FAULT, "", fields))

    def leave(self) -> None:
        """This rank's heartbeats end because its work is done."""
        self._store.set(_done(self._rank), "")

    def all_left(self) -> bool:
        """Whether every rank's work is done."""
        return self._store.check([_done(rank) for rank in range(self._size)])

    def _advance_clock(self) -> None:
        """Time counts only while this rank looks: when it is held up itself, nobody is silent."""
        now = time.monotonic()
        self._clock += min(now - self._read_at, 2 * INTERVAL)
        self._read_at = now

    def _dead(self) -> Fault | None:
        for rank, peer in list(self._watched.items()):
            silent = self._clock - peer.alive_at
            if silent <= (self.dead_seconds if peer.connected else self._timeout):
                continue
            if self._store.check([_done(rank)]):
                del self._watched[rank]
                continue
            what = (
                f"no heartbeat from {peer.host} for {silent:.0f} s"
                if peer.connected
                else f"did not connect to rank 0's watchdog within {silent:.0f} s"
            )
            reason = f"{what}: the process died, or its machine or network is down"
            return Fault(rank, FAULT, "lost", f"{reason}; last seen at {peer.at}")
        return None

    def _hung(self) -> Fault | None:
        peers = self._watched
        moved = any(self._clock - peer.moved_at <= self._timeout for peer in peers.values())
        if self._rank != 0 or moved:
            return None
        least = min(peer.progress for peer in peers.values())
        behind = [rank for rank, peer in peers.items() if peer.progress == least]
        first = peers[behind[0]]
        reason = (
            f"hangs: no rank has made progress for {self._timeout:.0f} s, {_names(behind)} furthest "
            f"behind, at {first.at} on {first.host}"
        )
        return Fault(behind[0], FAULT, "lost", reason)


def prepare(store: Store, size: int) -> None:
    """Create the keys that ``size`` ranks read, before the first of them connects."""
    store.set(_FAULT, "")
    for rank in range(size):
        store.set(_heartbeat(rank), "0|0||the start")
    store.check([_FAULT])  # has an answer, which comes after everything before it is done


class _Peer:
    """What was last seen of a rank, and when."""

    def __init__(self) -> None:
        self.alive_at = self.moved_at = 0.0
        self.count = self.progress = 0
        self.host = self.at = ""

    @property
    def connected(self) -> bool:
        return self.count > 0

    def update(self, heartbeat: str, now: float) -> None:
        count, progress, self.host, self.at = heartbeat.split("|", 3)
        if int(count) != self.count:
            self.count, self.alive_at = int(count), now
        if int(progress) != self.progress:
            self.progress, self.moved_at = int(progress), now


def _heartbeat(rank: int) -> str:
    return f"heartbeat/{rank}"


def _done(rank: int) -> str:
    return f"done/{rank}"


def _decode(fault: bytes) -> Fault:
    rank, code, state, reason = fault.decode().split("|", 3)
    return Fault(int(rank), int(code), "lost" if state == "lost" else "failed", reason)


def _names(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} is"
    listed = ", ".join(map(str, ranks[:NAMED_RANKS]))
    more = f" and {len(ranks) - NAMED_RANKS:,} more" if len(ranks) > NAMED_RANKS else ""
    return f"ranks {listed}{more} are"
