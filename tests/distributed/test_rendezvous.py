"""The rendezvous joins the ranks of each start, and none of an earlier one."""

import os
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ffcv_r50.distributed import rendezvous
from ffcv_r50.distributed.launcher import RankInfo
from ffcv_r50.errors import RunFault


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """torchrun's store, which outlives the starts of a group."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    return server


def ranks(size: int) -> list[RankInfo]:
    return [RankInfo(rank, size, rank, size, "torchrun", "env://") for rank in range(size)]


def start(infos: list[RankInfo], value: str) -> list[str]:
    """All ranks join, and rank 0 sets a key for the others; returns what each read."""
    size = len(infos)
    together = threading.Barrier(size)

    def one(info: RankInfo) -> str:
        store = rendezvous.create_store(info, 10)
        if info.rank == 0:
            assert not store.check(["key"]), "the store of an earlier start"
            store.set("key", value)
        found = store.get("key").decode()
        together.wait(10)  # rank 0 may be the one that serves the store
        return found

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, infos))


def test_each_start_has_a_store_of_its_own(agent: TCPStore) -> None:
    for number, size in enumerate((3, 3, 2, 4)):
        assert start(ranks(size), f"start {number}") == [f"start {number}"] * size


def test_a_start_that_broke_off_does_not_disturb_the_next(agent: TCPStore) -> None:
    # Rank 1 joined and died, or took the prefix of a rank 0 that died.
    agent.set("token/1", "of a dead process")
    assert start(ranks(2), "whole") == ["whole"] * 2
    with pytest.raises(RunFault, match=r"rank 1 of 2 on .*: the rendezvous at .* failed"):
        rendezvous.create_store(ranks(2)[1], 0.5)
    assert start(ranks(2), "whole again") == ["whole again"] * 2


@pytest.mark.slow
def test_who_is_missing_is_named(agent: TCPStore) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, *_, last = [pool.submit(rendezvous.create_store, info, 2) for info in ranks(4)[::3]]
        with pytest.raises(RunFault, match=r"rank 0 of 4 .*\(missing: rank 1, rank 2\)"):
            first.result()
        assert last.result() is not None


def test_without_an_agent_rank_0_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    infos = [info._replace(init_method=f"tcp://127.0.0.1:{port}") for info in ranks(2)]
    assert start(infos, "x") == ["x", "x"]


def test_a_rank_that_found_the_store_of_an_earlier_group_finds_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a program that forms two groups: rank 1 is early, rank 0 has yet to leave the first."""
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    earlier = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    method = f"tcp://127.0.0.1:{earlier.port}"
    first, second = (info._replace(init_method=method) for info in ranks(2))
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(rendezvous.create_store, second, 20)
        assert earlier.get("token/1")  # it has joined
        del earlier
        served = rendezvous.create_store(first, 20)
        served.set("key", "found")
        assert joined.result().get("key") == b"found"


def test_a_store_that_may_be_an_earlier_ones_is_named_as_the_cause(
    agent: TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_PORT", "1")
    info = ranks(2)[1]._replace(local_size=1)
    hint = "if torchrun has restarted, export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for it"
    with pytest.raises(RunFault, match=re.escape(hint)):
        rendezvous.create_store(info, 0.5)


@pytest.mark.parametrize(
    ("leads", "given", "local_size", "chosen"),
    [
        ("eth7", None, 1, "eth7"),
        ("eth7", "ib0", 1, "ib0"),  # the user knows better
        ("lo", None, 1, None),  # rank 0's own machine
        ("eth7", None, 2, None),  # all on one machine
    ],
)
def test_gloo_uses_the_interface_that_leads_to_the_rendezvous(
    monkeypatch: pytest.MonkeyPatch,
    leads: str,
    given: str | None,
    local_size: int,
    chosen: str | None,
) -> None:
    environment = {"GLOO_SOCKET_IFNAME": given} if given else {}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(rendezvous, "interface_to", lambda address: {"n1": leads}[address])
    info = RankInfo(0, 2, 0, local_size, "SLURM", "tcp://n1:12345")
    rendezvous.choose_interface(info)
    assert environment.get("GLOO_SOCKET_IFNAME") == chosen
