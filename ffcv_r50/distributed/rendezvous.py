"""The rendezvous of a run's processes, and the network interface that they use.

torchrun's agents may keep one key-value store when they restart a group (torch 2.15's do by
default): a rank of the new start would find the addresses of dead processes in it. Restart counts
do not tell the starts apart, because only the agent whose process died counts. So the ranks of each
start first agree on a prefix for their keys, by a handshake that no rank of an earlier start can
complete.
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
    DistNetworkError,
    PrefixStore,
    Store,
    TCPStore,
)

from ffcv_r50.distributed.launcher import RankInfo
from ffcv_r50.errors import RunFault

POLL_SECONDS = 0.02


def endpoint(info: RankInfo) -> tuple[str, int]:
    """Address and port of the rendezvous."""
    if info.init_method == "env://":
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    address, _, port = info.init_method.removeprefix("tcp://").rpartition(":")
    return address, int(port)


def create_store(info: RankInfo, timeout_seconds: float) -> Store:
    """Wait until all ranks of this start have joined.

    Returns:
        A store for this start alone.

    Raises:
        RunFault: not within ``timeout_seconds``; names the ranks that are missing, where known.
    """
    address, port = endpoint(info)
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            return _meet(info, deadline)
        except (DistError, TimeoutError) as error:
            # Where rank 0 serves, a program that forms a second group may still have found the first
            # one's store, which was about to close.
            lost = info.rank > 0 and not _agent_serves() and isinstance(error, DistNetworkError)
            if not lost or time.monotonic() + POLL_SECONDS > deadline:
                reason = str(error).partition("\n")[0]
                break
        time.sleep(POLL_SECONDS)
    if _agent_serves() and info.size > info.local_size:
        reason += "; if torchrun has restarted, export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for it"
    raise RunFault(
        f"rank {info.rank} of {info.size} on {socket.gethostname()}: the rendezvous at "
        f"{address}:{port} failed within dist.timeout_seconds={timeout_seconds:g} ({reason})"
    )


def _meet(info: RankInfo, deadline: float) -> Store:
    store = TCPStore(
        *endpoint(info),
        is_master=info.rank == 0 and not _agent_serves(),
        multi_tenant=True,
        wait_for_workers=False,
        timeout=datetime.timedelta(seconds=max(deadline - time.monotonic(), POLL_SECONDS)),
    )
    prefix = _gather(store, info.size, deadline) if info.rank == 0 else _join(store, info.rank)
    return PrefixStore(prefix, store)


def _agent_serves() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _join(store: Store, rank: int) -> str:
    """Publish a token that no earlier start knows; rank 0 answers it with the prefix."""
    token = uuid.uuid4().hex
    store.set(f"token/{rank}", token)
    prefix = store.get(f"prefix/{token}").decode()
    store.set(f"{prefix}/{rank}", "")  # acknowledged
    return prefix


def _gather(store: Store, size: int, deadline: float) -> str:
    """Answer every token with this start's prefix, until each rank has acknowledged it."""
    prefix = uuid.uuid4().hex
    missing = set(range(1, size))
    while True:
        for rank in list(missing):
            if store.check([f"token/{rank}"]):  # perhaps still an earlier start's: no harm
                store.set(f"prefix/{store.get(f'token/{rank}').decode()}", prefix)
            if store.check([f"{prefix}/{rank}"]):
                missing.remove(rank)
        if not missing:
            return prefix
        if time.monotonic() > deadline:
            raise TimeoutError(f"missing: {', '.join(f'rank {rank}' for rank in sorted(missing))}")
        time.sleep(POLL_SECONDS)


# -------------------------------------------------------------------------------------- interface


def choose_interface(info: RankInfo) -> None:
    """Have gloo use the network interface that leads to the rendezvous.

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
