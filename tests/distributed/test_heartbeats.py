"""The exchange of heartbeats, round by round: the ranks are objects here, and time is a number."""

import datetime
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from ffcv_r50.distributed import heartbeats
from ffcv_r50.distributed.heartbeats import DEAD_SECONDS, Exchange, Fault
from ffcv_r50.errors import BAD_INPUT, FAULT

HOST = socket.gethostname()
DEAD = int(DEAD_SECONDS) + 1
TIMEOUT = 40


class Counted:
    """A store that counts the values that are asked of it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.requests = self.values = 0

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.requests += 1
            self.values += len(arguments[0]) if isinstance(arguments[0], list) else 1
            return getattr(self._store, name)(*arguments)

        return call


class Ranks:
    """All ranks of a run; those in ``silent`` take no part, those in ``stuck`` make no progress."""

    def __init__(self, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        soon = datetime.timedelta(seconds=5)  # whoever waits for a key that is not there fails
        server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=soon)
        heartbeats.prepare(server, size)
        self.now = 0.0
        monkeypatch.setattr(heartbeats, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.stores = [Counted(server) for _ in range(size)]
        self.exchanges = [
            Exchange(store, rank, size, TIMEOUT)  # type: ignore[arg-type]
            for rank, store in enumerate(self.stores)
        ]
        self.progress = [0] * size
        self.silent: set[int] = set()
        self.stuck: set[int] = set()

    def round(self) -> list[Fault | None]:
        """A second later; what each rank that takes part learns, rank 0 before the others."""
        self.now += 1
        learned = []
        for rank, exchange in enumerate(self.exchanges):
            if rank not in self.stuck | self.silent:
                self.progress[rank] += 1
            if rank not in self.silent:
                step = self.progress[rank]
                learned.append(exchange.round(step, f"step {step}"))
        return learned

    def first_fault(self, rounds: int) -> Fault:
        """Nobody learns anything for so many rounds; then somebody does, and in the next all do."""
        for _ in range(rounds):
            assert not any(self.round())
        found = next(filter(None, self.round()))
        assert set(self.round()) == {found}
        return found


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    return Ranks(5, monkeypatch)


def test_a_silent_rank_is_named_to_all(ranks: Ranks) -> None:
    ranks.round()
    ranks.silent = {3}
    found = ranks.first_fault(DEAD)
    assert (found.rank, found.code, found.state) == (3, FAULT, "lost")
    assert str(found) == (
        f"rank 3: no heartbeat from {HOST} for {DEAD} s: the process died, or its machine or network "
        "is down; last seen at step 1"
    )


def test_the_others_name_rank_0_while_its_store_still_answers(ranks: Ranks) -> None:
    ranks.round()
    ranks.silent = {0}
    found = ranks.first_fault(DEAD - 1)
    assert str(found).startswith(f"rank 0: no heartbeat from {HOST} for {DEAD} s: ")
    ranks.silent = set()
    assert ranks.round() == [found] * 5, "rank 0 itself, where it comes back"


def test_ranks_that_hang_are_named_though_their_hearts_beat(ranks: Ranks) -> None:
    ranks.round()
    ranks.stuck = {2, 4}
    assert not any(ranks.round())
    ranks.stuck = {0, 1, 2, 3, 4}  # the others, waiting for them
    found = ranks.first_fault(TIMEOUT + 1)
    assert (found.rank, found.state) == (2, "lost")
    assert str(found) == (
        f"rank 2: hangs: no rank has made progress for {TIMEOUT} s, ranks 2, 4 are furthest behind, "
        f"at step 1 on {HOST}"
    )


def test_of_many_ranks_that_hang_a_few_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(20, monkeypatch)
    ranks.stuck = set(range(20))
    found = ranks.first_fault(TIMEOUT)
    assert "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 12 more are furthest behind" in found.reason


def test_a_rank_that_never_connects_has_the_whole_time_out(ranks: Ranks) -> None:
    ranks.silent = {1}
    found = ranks.first_fault(TIMEOUT)
    assert str(found).startswith(
        f"rank 1: did not connect to rank 0's watchdog within {TIMEOUT + 1} s: the process died"
    )


def test_a_rank_that_finished_may_be_silent(ranks: Ranks) -> None:
    ranks.round()
    for rank in (1, 2, 3, 4):
        ranks.exchanges[rank].leave()
    ranks.silent = {1, 2, 3, 4}
    assert not ranks.exchanges[0].all_left()
    for _ in range(2 * TIMEOUT):
        assert not any(ranks.round())
    ranks.exchanges[0].leave()
    assert ranks.exchanges[0].all_left()


def test_the_first_fault_counts_on_every_rank(ranks: Ranks) -> None:
    ranks.round()
    first = Fault(2, BAD_INPUT, "failed", "train.beton: sample 17 | cannot be decoded")
    assert ranks.exchanges[2].report(first) == first
    assert ranks.exchanges[1].report(Fault(1, FAULT, "failed", "its consequence")) == first
    assert ranks.round() == [first] * 5


def test_a_clock_that_jumps_or_a_rank_0_that_was_stopped_accuses_nobody(ranks: Ranks) -> None:
    ranks.round()
    for _ in range(3):
        # Rank 0 reads before the others had time to publish anew.
        assert ranks.exchanges[0].round(1, "step 1") is None
        ranks.now += 3600
        assert ranks.exchanges[0].round(1, "step 1") is None
        assert not any(ranks.round())


def test_the_cost_grows_with_the_number_of_ranks_not_with_its_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {}
    for size in (8, 64):
        ranks = Ranks(size, monkeypatch)
        ranks.round()
        before = sum(store.values for store in ranks.stores)
        requests = [store.requests for store in ranks.stores]
        ranks.round()
        values[size] = sum(store.values for store in ranks.stores) - before
        assert [s.requests - b for s, b in zip(ranks.stores, requests, strict=True)] == [2] * size
    # A rank sets one value and reads two; rank 0 reads all and the fault.
    assert values == {8: 4 * 8 - 1, 64: 4 * 64 - 1}
