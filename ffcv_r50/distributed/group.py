"""The process group of a run started by torchrun, srun or submitit; or a single process."""

import atexit
import contextlib
import datetime
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist

from ffcv_r50.distributed import cores, launcher, open_files, rendezvous
from ffcv_r50.distributed.launcher import RankInfo
from ffcv_r50.errors import BAD_INPUT, FAULT, RunFault, UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Who this process is among its peers."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Cores for this process: those it may run on, less what its peers take of them."""
    launcher: str = "none"
    """Where the numbers come from: ``torchrun``, ``SLURM``, ``submitit`` or ``none``."""
    restarted: bool = False
    """Whether torchrun started the group again after an earlier one of the same call ended."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def several_nodes(self) -> bool:
        """Whether its peers are on other machines too; the same on every rank."""
        return self.size > self.local_size


@contextlib.contextmanager
def world(timeout_seconds: int, *, deterministic: bool = False) -> Iterator[World]:
    """Join the process group for as long as the context lasts.

    Args:
        timeout_seconds: how long the rendezvous at the start, or a collective, may wait for a peer.
            On GPUs collectives may wait twice as long.
        deterministic: sums over GPUs have the same bits in every run.

    Raises:
        UserError: the launcher's variables are incomplete or contradictory, a process has no GPU
            while others of its machine have, or it may not open a connection to each rank.
        RunFault: the rendezvous fails.
    """
    info = launcher.detect(os.environ)
    device = _device(info)
    if not info.init_method:
        yield World(0, 1, 0, 1, device, cores.granted(info), info.launcher)
        return
    # At rank 0, which needs most: to the rendezvous, the watchdog's store, and as gloo's peer.
    open_files.allow(3 * info.size)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        if deterministic:
            # NVLink SHARP, which NCCL may choose by itself, sums in an order that varies.
            os.environ.setdefault("NCCL_ALGO", "Ring")
    _join(info, device, timeout_seconds)
    threads = torch.get_num_threads()
    try:
        share = cores.share(info, device)
        torch.set_num_threads(min(threads, share))
        yield World(*info[:4], device, share, info.launcher, _restarted())
    except BaseException as error:
        # Peers may be gone and kernels wait for them for ever: taking the group down would, too.
        # So would NCCL's own destructors, which therefore do not run.
        if device.type == "cuda":
            atexit.register(_exit, BAD_INPUT if isinstance(error, UserError) else FAULT)
        raise
    else:
        dist.destroy_process_group()
    finally:
        torch.set_num_threads(threads)


def _join(info: RankInfo, device: torch.device, timeout_seconds: int) -> None:
    # The watchdog's store is at the same host.
    os.environ.setdefault("MASTER_ADDR", rendezvous.endpoint(info)[0])
    rendezvous.choose_interface(info)
    # NCCL ends the process when a collective takes too long: not before the watchdog has named the
    # rank that it waits for.
    collective_seconds = timeout_seconds * (2 if device.type == "cuda" else 1)
    try:
        dist.init_process_group(
            # Objects and error messages travel over gloo, tensors of the model over NCCL.
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=rendezvous.create_store(info, timeout_seconds),
            rank=info.rank,
            world_size=info.size,
            timeout=datetime.timedelta(seconds=collective_seconds),
            device_id=device if device.type == "cuda" else None,
        )
    except (RunFault, dist.DistError) as error:
        message = str(error).partition("\n")[0]
        if info.rank:  # rank 0 alone prints what a program ends with, and may not get this far
            print(f"error: {message}", file=sys.stderr, flush=True)
        raise RunFault(message) from error


def _exit(code: int) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _device(info: RankInfo) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if visible >= info.local_size:
        return torch.device("cuda", info.local_rank)
    # srun --gpus-per-task shows each task its own GPU only.
    node = os.environ.get("SLURM_GPUS_ON_NODE", "")
    if visible == 1 and info.launcher == "SLURM" and int(node or 0) >= info.local_size:
        return torch.device("cuda", 0)
    ask = "srun --ntasks-per-node" if info.launcher == "SLURM" else "torchrun --nproc_per_node"
    raise UserError(
        f"{socket.gethostname()}: {info.local_size} processes for {visible} GPUs; "
        f"give {ask} of at most the number of GPUs"
    )


def _restarted() -> bool:
    # On every rank: only the agent whose process ended counts a restart.
    counts = torch.tensor([float(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))])
    all_reduce_sum(counts)
    return counts.item() > 0


# ------------------------------------------------------------------------------------ description


class _Process(NamedTuple):
    host: str
    rank: int
    device: str
    cores: int
    network: str


def describe(world: World) -> list[str]:
    """One line a node: its ranks, devices, cores, backend and network interface.

    All ranks must call it; each gets the same lines.
    """
    if not dist.is_initialized():
        mine = _Process(socket.gethostname(), 0, _device_name(world.device), world.cores, "")
        lines = [_node_line([mine])]
        tasks = os.environ.get("SLURM_NTASKS", "1")
        if world.launcher == "none" and tasks != "1" and "SLURM_JOB_ID" in os.environ:
            lines.append(f"SLURM allocated {tasks} tasks; this is one process (srun starts all)")
        return lines
    info = launcher.detect(os.environ)
    interface = os.environ.get("GLOO_SOCKET_IFNAME") or rendezvous.interface_to(
        rendezvous.endpoint(info)[0]
    )
    network = f"gloo on {interface or 'the default interface'}"
    if world.device.type == "cuda":
        network = f"NCCL on {os.environ.get('NCCL_SOCKET_IFNAME', 'its own choice')}, {network}"
    mine = _Process(
        socket.gethostname(), world.rank, _device_name(world.device), world.cores, network
    )
    everyone: list[_Process] = [mine] * world.size
    dist.all_gather_object(everyone, mine)
    nodes = {process.host: [p for p in everyone if p.host == process.host] for process in everyone}
    return [_node_line(processes) for processes in nodes.values()]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _node_line(processes: list[_Process]) -> str:
    ranks = [process.rank for process in processes]
    first, last = ranks[0], ranks[-1]
    if len(ranks) == 1:
        named = f"rank {first}"
    elif ranks == list(range(first, last + 1)):
        named = f"ranks {first}-{last}"
    else:
        named = "ranks " + ",".join(map(str, ranks))
    parts = [named]
    for what in ("device", "cores", "network"):
        values = list(dict.fromkeys(getattr(process, what) for process in processes))
        text = " / ".join(map(str, values))
        each = " each" if len(processes) > 1 else ""
        if what == "cores":
            text += f" core{'s' * (values != [1])}{each}"
        elif what == "device" and len(processes) > 1 and len(values) == 1 and text != "CPU":
            text = f"{len(processes)} x {text}"
        parts.append(text)
    return f"{processes[0].host}: " + ", ".join(filter(None, parts))


# ---------------------------------------------------------------------------------- collectives


def collective_timeout() -> datetime.timedelta:
    """How long the group's collectives may wait: for subgroups, which torch gives its own default."""
    group = dist.group.WORLD
    assert group is not None
    return group._get_backend(torch.device("cpu")).options._timeout


@contextlib.contextmanager
def errors_on_all_ranks() -> Iterator[None]:
    """Turn a :class:`UserError` on any rank into the same one on every rank.

    For checks whose outcome can differ between machines (a file that one node does not see): all
    ranks must pass through it.
    """
    message = None
    try:
        yield
    except UserError as error:
        message = str(error)
    if not dist.is_initialized():
        if message is not None:
            raise UserError(message)
        return
    messages: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(messages, message)
    if messages[0] is not None:
        raise UserError(messages[0])
    for rank, text in enumerate(messages):
        if text is not None:
            raise UserError(f"rank {rank}: {text}")


def broadcast_object(value: T | None) -> T:
    """Rank 0's ``value``, on every rank; the others pass None."""
    if not dist.is_initialized():
        assert value is not None
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    assert box[0] is not None
    return box[0]


def all_reduce_sum(tensor: torch.Tensor) -> None:
    """Sum ``tensor`` over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)


def begin_all_reduce_sum(tensor: torch.Tensor) -> Callable[[], object]:
    """Begin to sum ``tensor`` over all ranks, in place.

    Returns:
        What has to be called before the sum is used. On a GPU that lets the stream wait, not Python.
    """
    work = dist.all_reduce(tensor, async_op=True) if dist.is_initialized() else None
    return work.wait if work else lambda: None


def begin_all_reduce_sum_bf16(tensor: torch.Tensor) -> Callable[[], object]:
    """As :func:`begin_all_reduce_sum`, with half the bytes on the network.

    Each rank gets a part of everyone's numbers as bf16, adds them up in float32, and sends the sums to
    all as bf16: each number is rounded twice, whatever the number of ranks. An all-reduce of a bf16
    tensor would round at each hop. The sums travel only when the first half is waited for.

    Args:
        tensor: float32.
    """
    if not dist.is_initialized():
        return lambda: None
    ranks = dist.get_world_size()
    sent = tensor.new_zeros(-(-len(tensor) // ranks) * ranks, dtype=torch.bfloat16)
    sent[: len(tensor)] = tensor
    received = torch.empty_like(sent)
    work = dist.all_to_all_single(received, sent, async_op=True)
    assert work is not None

    def finish() -> None:
        work.wait()
        own = received.view(ranks, -1).sum(0, dtype=torch.float32).bfloat16()
        dist.all_gather_into_tensor(sent, own)
        tensor.copy_(sent[: len(tensor)])

    return finish


def broadcast_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Give every rank rank 0's values, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
