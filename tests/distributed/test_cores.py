"""Which cores a process may keep busy: limits of containers, NUMA nodes beside GPUs."""

import math
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from ffcv_r50.distributed import cores
from ffcv_r50.distributed.launcher import RankInfo

ALONE = RankInfo(0, 1, 0, 1, "none", "")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of eight cores whose kernel's files lie below ``tmp_path``."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    for name in ("CGROUPS", "MEMBERSHIP", "DEVICES", "NUMA_NODES"):
        monkeypatch.setattr(cores, name, tmp_path / name)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, math.inf),
        ({"cpu.max": "max 100000"}, math.inf),
        ({"cpu.max": "250000 100000"}, 2.5),
        ({"pod/job/cpu.max": "max 100000", "pod/cpu.max": "300000 100000"}, 3),
        ({"pod/job/cpu.max": "50000 100000", "pod/cpu.max": "300000 100000"}, 0.5),
        ({"elsewhere/cpu.max": "100000 100000"}, math.inf),
    ],
)
def test_the_lowest_limit_of_the_control_groups(
    machine: Path, files: dict[str, str], expected: float
) -> None:
    write(machine / "MEMBERSHIP", "0::/pod/job")
    for name, text in files.items():
        write(machine / "CGROUPS" / name, text)
    assert cores.quota() == expected


def test_version_1_of_control_groups(machine: Path) -> None:
    write(machine / "MEMBERSHIP", "5:cpuset:/docker/1\n4:cpu,cpuacct:/docker/1\n0::/")
    group = machine / "CGROUPS" / "cpu,cpuacct"  # in a container its own group is the root
    write(group / "cpu.cfs_quota_us", "-1")
    write(group / "cpu.cfs_period_us", "100000")
    assert cores.quota() == math.inf
    write(group / "cpu.cfs_quota_us", "400000")
    assert cores.quota() == 4


def test_a_limit_is_shared_by_the_processes_of_the_machine(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cores.granted(ALONE) == 8
    write(machine / "MEMBERSHIP", "0::/")
    write(machine / "CGROUPS" / "cpu.max", "650000 100000")
    assert cores.granted(ALONE) == 6
    assert cores.granted(ALONE._replace(size=4, local_size=4)) == 1
    write(machine / "CGROUPS" / "cpu.max", "20000 100000")
    assert cores.granted(ALONE) == 1
    write(machine / "CGROUPS" / "cpu.max", "max 100000")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "5")
    assert cores.granted(ALONE) == 5


GPUS = {bus: f"0000:{bus:02x}:00.0" for bus in (0x3B, 0x3C, 0xAF, 0xB0)}


def gpus_on(machine: Path, monkeypatch: pytest.MonkeyPatch, *nodes: int) -> None:
    """GPU i hangs on NUMA node ``nodes[i]``; cores 0 to 3 are on node 0, 4 to 7 on node 1."""
    buses = list(GPUS)
    for bus, node in zip(buses, nodes, strict=False):
        write(machine / "DEVICES" / GPUS[bus] / "numa_node", str(node))
    write(machine / "NUMA_NODES" / "node0" / "cpulist", "0-2,3")
    write(machine / "NUMA_NODES" / "node1" / "cpulist", "4-7")
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(
            pci_domain_id=0, pci_bus_id=buses[device.index], pci_device_id=0
        ),
    )


@pytest.mark.parametrize(
    ("nodes", "bound", "share"),
    [
        ((0, 1), [{0, 1, 2, 3}, {4, 5, 6, 7}], 4),
        ((1, 0), [{4, 5, 6, 7}, {0, 1, 2, 3}], 4),
        ((0, 0), [None, None], 4),  # bound, each would have two
        ((0, 0, 0, 1), [None] * 4, 2),  # three of them would have one
        ((-1, -1), [None, None], 4),  # the kernel does not know
    ],
)
def test_processes_are_bound_beside_their_gpus_where_none_loses(
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    nodes: tuple[int, ...],
    bound: list[set[int] | None],
    share: int,
) -> None:
    gpus_on(machine, monkeypatch, *nodes)
    devices = [torch.device("cuda", i) for i in range(len(nodes))]
    told = [("host", set(range(8)), cores.near(device, set(range(8)))) for device in devices]
    asked: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, allowed: asked.append(allowed))
    monkeypatch.setattr(socket, "gethostname", lambda: "host")

    def gather(everyone: list[object], mine: object) -> None:
        assert mine in told
        everyone[:] = told

    monkeypatch.setattr(dist, "all_gather_object", gather)
    for rank, device in enumerate(devices):
        asked.clear()
        info = RankInfo(rank, len(nodes), rank, len(nodes), "torchrun", "env://")
        assert cores.share(info, device) == share
        assert asked == ([] if bound[rank] is None else [bound[rank]])
