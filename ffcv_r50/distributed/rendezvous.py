"""Where the processes of a run meet, and over which network interface they talk.

torchrun's agents may keep one key-value store when they start a group again (torch 2.15's do by
default): who meets there finds the addresses of dead processes. Their restart counts are no way to
tell the starts apart, because only the agent whose process died counts. So the ranks of each start
first agree on a name, in an exchange that no rank of an earlier start can take part in, and then
meet under that name.
"""

import datetime
import fcntl
import os
import socket
import struct
import time
import uuid

from torch.distributed import (  # type: ignore[attr-defined]
    DistError,
    PrefixStore,
    Store,
    TCPStore,
)

from ffcv_r50.distributed.launcher import RankInfo
from ffcv_r50.errors import RunFault

POLL_SECONDS = 0.02


def endpoint(info: RankInfo) -> tuple[str, int]:
    """Address and port where the processes meet."""
    if info.init_method == "env://":
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    address, _, port = info.init_method.removeprefix("tcp://").rpartition(":")
    return address, int(port)


def create_store(info: RankInfo, timeout_seconds: float) -> Store:
    """Wait until all ranks of this start are here.

    Returns:
        A store for this start alone.

    Raises:
        RunFault: they are not within ``timeout_seconds``; says who is missing, where that is known.
    """
    address, port = endpoint(info)
    deadline = time.monotonic() + timeout_seconds
    try:
        store = TCPStore(
            address,
            port,
            is_master=info.rank == 0 and not _agent_serves(),
            multi_tenant=True,
            wait_for_workers=False,
            timeout=datetime.timedelta(seconds=timeout_seconds),
        )
        name = _gather(store, info.size, deadline) if info.rank == 0 else _join(store, info.rank)
    except DistError as error:
        reason = str(error).partition("\n")[0]
    except TimeoutError as error:
        reason = str(error)
    else:
        return PrefixStore(name, store)
    if _agent_serves() and info.size > info.local_size:
        reason += "; if torchrun has restarted, export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for it"
    raise RunFault(
        f"rank {info.rank} of {info.size} on {socket.gethostname()} did not meet its peers at "
        f"{address}:{port} within dist.timeout_seconds={timeout_seconds:g} ({reason})"
    )


def _agent_serves() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _join(store: Store, rank: int) -> str:
    """Introduce this rank, by a word that no earlier start can know, until rank 0 answers to it."""
    word = uuid.uuid4().hex
    store.set(f"here/{rank}", word)
    name = store.get(f"name/{word}").decode()
    store.set(f"{name}/{rank}", "")
    return name


def _gather(store: Store, size: int, deadline: float) -> str:
    """Name this start to whoever introduces itself, until every rank has taken the name."""
    name = uuid.uuid4().hex
    missing = set(range(1, size))
    while True:
        for rank in list(missing):
            if store.check([f"here/{rank}"]):  # perhaps still an earlier start's word: no harm
                store.set(f"name/{store.get(f'here/{rank}').decode()}", name)
            if store.check([f"{name}/{rank}"]):
                missing.remove(rank)
        if not missing:
            return name
        if time.monotonic() > deadline:
            raise TimeoutError(f"missing: {', '.join(f'rank {rank}' for rank in sorted(missing))}")
        time.sleep(POLL_SECONDS)


# -------------------------------------------------------------------------------------- interface


def choose_interface(info: RankInfo) -> None:
    """Have gloo talk over the interface that leads to the meeting point.

    By itself it takes the one that the host's own name resolves to, which on many systems is the
    loopback (127.0.1.1), where no other node can reach it.
    """
    if info.size > info.local_size and "GLOO_SOCKET_IFNAME" not in os.environ:
        name = interface_to(endpoint(info)[0])
        if name not in ("", "lo"):
            os.environ["GLOO_SOCKET_IFNAME"] = name


def interface_to(address: str) -> str:
    """The network interface whose IPv4 address packets to ``address`` leave with; empty if none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # asks the routing table; nothing is sent
        except OSError:
            return ""
        ours = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe, 0x8915, request)  # SIOCGIFADDR
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(answer[20:24]) == ours:
                return name
    return ""
