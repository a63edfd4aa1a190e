"""The CPU cores of this process: how many it may use, and which are near its GPU.

A process's CPU affinity is seldom its own share: torchrun's processes may all run on every core,
SLURM may allocate cores without binding processes to them, and a container's limit is a quota of
time that no affinity shows. A loader with a thread for each core of its affinity has too many.
"""

import math
import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ffcv_r50.distributed.launcher import RankInfo

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
DEVICES = Path("/sys/bus/pci/devices")
NUMA_NODES = Path("/sys/devices/system/node")


def granted(info: RankInfo) -> int:
    """Cores that this process may use if no other one shares them.

    Fewer than its affinity where SLURM allocates without binding, or where a control group (a
    container) has a quota: both are for all processes of the machine.
    """
    cores = len(os.sched_getaffinity(0))
    given = os.environ.get("SLURM_CPUS_ON_NODE", "")
    if given.isdecimal():
        cores = min(cores, int(given) // info.local_size)
    limit = quota()
    if limit < math.inf:
        cores = min(cores, int(limit) // info.local_size)
    return max(1, cores)


def quota() -> float:
    """The CPU quota of this process's control groups, in cores; infinite without one.

    Reads version 2 (``cpu.max``) and version 1 (``cpu.cfs_quota_us``), up to the root: a container
    may see its own group there and an outer path in its membership.
    """
    lowest = math.inf
    for line in _read(MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            most, _, period = _read(folder / "cpu.max").strip().partition(" ")
            if controllers:
                most = _read(folder / "cpu.cfs_quota_us").strip()
                period = _read(folder / "cpu.cfs_period_us").strip()
            if most.isdecimal() and period.isdecimal():  # neither "max" nor -1
                lowest = min(lowest, int(most) / int(period))
            if folder == root:
                break
    return lowest


def share(info: RankInfo, device: torch.device) -> int:
    """This process's cores, each divided by the ranks of the machine whose affinity contains it.

    Where the launcher binds ranks to cores of their own nothing is divided; where each may run on
    all cores they get even shares. On a machine of several NUMA nodes the process is bound to the
    cores of its GPU's node, unless that leaves some rank with fewer. All ranks must call it.
    """
    allowed = os.sched_getaffinity(0)
    mine = (socket.gethostname(), allowed, near(device, allowed))
    everyone: list[tuple[str, set[int], set[int]]] = [mine] * info.size
    dist.all_gather_object(everyone, mine)
    _, alloweds, nears = zip(*(other for other in everyone if other[0] == mine[0]), strict=True)
    if nears != alloweds and all(
        _divided(beside, nears) >= _divided(anywhere, alloweds)
        for anywhere, beside in zip(alloweds, nears, strict=True)
    ):
        alloweds = nears
        os.sched_setaffinity(0, mine[2])  # and with it every thread that starts from here on
        allowed = mine[2]
    return max(1, min(_divided(allowed, alloweds), granted(info)))


def near(device: torch.device, allowed: set[int]) -> set[int]:
    """Those of the cores ``allowed`` that share a NUMA node with a GPU; all where that is unknown."""
    if device.type != "cuda":
        return allowed
    gpu: Any = torch.cuda.get_device_properties(device)
    if not hasattr(gpu, "pci_bus_id"):  # an older torch
        return allowed
    address = f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0"
    node = _read(DEVICES / address / "numa_node").strip()
    beside = allowed & _numbers(_read(NUMA_NODES / f"node{node}" / "cpulist").strip())
    return beside or allowed


def _divided(cores: set[int], of_all: tuple[set[int], ...]) -> int:
    return int(sum(1 / sum(core in others for others in of_all) for core in cores) + 1e-6)


def _numbers(text: str) -> set[int]:
    """The kernel's lists: ``0-3,8`` is {0, 1, 2, 3, 8}."""
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def _read(path: Path) -> str:
    """Its text; empty where there is no such file, as on other kernels."""
    try:
        return path.read_text()
    except OSError:
        return ""
