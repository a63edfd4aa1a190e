"""The process group of a run: started by torchrun, or a single process."""

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from ffcv_r50.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Who this process is among its peers."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    @property
    def cores(self) -> int:
        """Cores this process may use: its affinity, shared among the processes of this machine."""
        return max(1, len(os.sched_getaffinity(0)) // self.local_size)


@contextlib.contextmanager
def world(timeout_seconds: int) -> Iterator[World]:
    """Join the process group for as long as the context lasts.

    Args:
        timeout_seconds: how long a collective, or the meeting at the start, may wait for a peer.

    Raises:
        UserError: torchrun's variables are incomplete or contradictory, or a process has no GPU
            while others of its machine have.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if not given or given == {"LOCAL_RANK": "0"}:
        yield World(0, 1, 0, 1, _device(0, 1))
        return
    if missing := [
        name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
    ]:
        raise UserError(
            f"environment: {', '.join(sorted(given))} set but {', '.join(missing)} not; start with "
            "torchrun, or unset them for a single process"
        )
    try:
        rank, size, local_rank, local_size = (int(given[name]) for name in names)
    except ValueError:
        raise UserError(
            f"environment: {given} must be whole numbers; start with torchrun"
        ) from None
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise UserError(f"environment: {given} contradict each other; start with torchrun")
    device = _device(local_rank, local_size)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        # Objects and error messages travel over gloo, tensors of the model over NCCL.
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        timeout=datetime.timedelta(seconds=timeout_seconds),
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield World(rank, size, local_rank, local_size, device)
    finally:
        dist.destroy_process_group()


def _device(local_rank: int, local_size: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_size > torch.cuda.device_count():
        raise UserError(
            f"{socket.gethostname()}: {local_size} processes for {torch.cuda.device_count()} GPUs; "
            "give torchrun --nproc_per_node of at most the number of GPUs"
        )
    return torch.device("cuda", local_rank)


@contextlib.contextmanager
def agreed_errors() -> Iterator[None]:
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


def from_main(value: T | None) -> T:
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
