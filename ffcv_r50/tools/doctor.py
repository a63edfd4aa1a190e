"""Is this machine, or this job of many, ready to train? One table says what is wrong.

::

    python -m ffcv_r50.tools.doctor [--data FILE ...] [--folder DIR] [--timeout SECONDS]
    srun python -m ffcv_r50.tools.doctor ...          torchrun ... -m ffcv_r50.tools.doctor ...

Checks, on every process: versions, the device, how fast tensors are summed over all processes, that
clocks agree, that the ``.beton`` files can be read and how fast their images are decoded, and that
the run folder can be written and has room.
"""

import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numba
import numpy
import torch
import torch.distributed as dist
import torchvision
from rich.console import Console
from rich.table import Table

import ffcv_r50
from ffcv_r50 import distributed
from ffcv_r50.config import command_line
from ffcv_r50.config.settings import Count
from ffcv_r50.data import jpeg
from ffcv_r50.data.beton import Beton
from ffcv_r50.data.loader import TrainLoader
from ffcv_r50.errors import FAULT, FINISHED, UserError, exit_with
from ffcv_r50.registry import Options

CLOCK_SECONDS = 1.0
"""Clocks further apart make logs of several machines hard to read together."""
FREE_GB = 10
"""Room for the checkpoints of a run: four of a ResNet-50 with momentum take 0.8 GB."""
DECODE_SECONDS = 2.0
DECODE_BATCH = 32
DECODE_SIDE = 192
SUM_MIB = 64


class Examined(Options):
    """What the doctor looks at besides the machine."""

    data: tuple[str, ...] = ()
    """A `.beton` file; may be given several times."""
    folder: str | None = None
    """Where runs are to be written."""
    timeout: Count = 60
    """Seconds that processes wait for each other."""


class Finding(NamedTuple):
    """What one process found in one check."""

    text: str
    """The result; equal ones of several processes are shown once."""
    advice: str = ""
    """What to do, where something is wrong."""


def main() -> None:
    """Examine, print the table; exit with 0 where nothing is wrong, else with 1."""
    exit_with(lambda: examine(sys.argv[1:]), together=True)


def examine(argv: Sequence[str]) -> int:
    """All checks, on every process of the group.

    Args:
        argv: see the module's text.

    Returns:
        The exit code, the same on every rank.

    Raises:
        UserError: an option is wrong, or the processes' environment contradicts itself.
        RunFault: they do not meet.
    """
    options = command_line.read(Examined, argv, usage=__doc__ or "")
    folder = options.folder
    with distributed.world(options.timeout) as world:
        checks: dict[str, Callable[[], Finding]] = {
            "versions": _versions,
            "libjpeg-turbo": _jpeg,
            "device": lambda: _device(world),
        }
        for path in options.data:
            checks[f"read {path}"] = lambda path=path: _data(path, world)  # type: ignore[misc]
        if folder:
            checks[f"write {folder}"] = lambda: _folder(Path(folder))
        mine = {name: _guarded(check) for name, check in checks.items()}
        # These take all processes together, so nothing may fail on one of them before.
        if world.size > 1:
            mine["clocks"] = _clocks(world)
            mine["sum over processes"] = _sums(world)
        everyone: list[tuple[str, dict[str, Finding]]] = [("", {})] * world.size
        found = (socket.gethostname(), mine)
        if world.size > 1:
            dist.all_gather_object(everyone, found)
        else:
            everyone = [found]
        lines = distributed.describe(world)
        if world.is_main:
            for line in lines:
                print(line)
            _print(everyone)
        wrong = any(finding.advice for _, findings in everyone for finding in findings.values())
        differ = len({findings["versions"].text for _, findings in everyone}) > 1
        return FAULT if wrong or differ else FINISHED


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except UserError as error:
        return Finding("failed", str(error))
    except Exception as error:  # the doctor reports, whatever it is
        return Finding("failed", f"{type(error).__name__}: {error}")


def _versions() -> Finding:
    found = ffcv_r50.versions(torch, torchvision, numpy, numba)
    return Finding(", ".join(f"{name} {version}" for name, version in found.items()))


def _jpeg() -> Finding:
    jpeg.library()
    return Finding("found")


def _device(world: distributed.World) -> Finding:
    if world.device.type == "cpu":
        if torch.version.cuda and shutil.which("nvidia-smi"):
            return Finding(
                "CPU",
                "torch sees no GPU but nvidia-smi is here: ask the scheduler for GPUs, or install a "
                "driver that is new enough for CUDA " + torch.version.cuda,
            )
        return Finding("CPU")
    properties = torch.cuda.get_device_properties(world.device)
    x = torch.ones(1024, 1024, device=world.device)
    if not torch.equal(x @ x, x * 1024):
        return Finding(properties.name, "computes wrong products: take this GPU out of service")
    precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    free, total = torch.cuda.mem_get_info(world.device)
    text = f"{properties.name}, {total / 2**30:.0f} GiB, {precision}"
    if free < 0.9 * total:
        return Finding(text, f"only {free / 2**30:.1f} GiB free: another process uses it")
    return Finding(text)


def _data(path: str, world: distributed.World) -> Finding:
    dataset = Beton(path)
    size = min(DECODE_BATCH, dataset.num_samples)
    loader = TrainLoader(
        dataset, seed=world.rank, batch_size=size, micro_batch_size=size, num_workers=world.cores
    )
    decoded, epoch, began = 0, 0, 0.0
    while decoded == 0 or time.perf_counter() - began < DECODE_SECONDS:
        with loader.epoch(epoch, DECODE_SIDE) as batches:
            for batch in batches:
                if began == 0.0:  # the first batch waits for the compiler
                    began = time.perf_counter()
                else:
                    decoded += len(batch.labels)
                if decoded and time.perf_counter() - began >= DECODE_SECONDS:
                    break
        epoch += 1
    rate = decoded / (time.perf_counter() - began)
    return Finding(
        f"{dataset.num_samples:,} images; {rate:,.0f} images/s at {DECODE_SIDE} px on "
        f"{world.cores} core{'s' * (world.cores > 1)}"
    )


def _folder(folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
    except OSError as error:
        return Finding(
            f"{there} is not writable ({error.strerror})",
            "choose another --folder: on many clusters only scratch is writable in jobs",
        )
    free = shutil.disk_usage(there).free / 1e9
    text = f"{free:,.0f} GB free" if free >= 10 else f"{free:.1f} GB free"
    if free < FREE_GB:
        return Finding(text, f"make room: a run wants {FREE_GB} GB")
    return Finding(text)


def _clocks(world: distributed.World) -> Finding:
    """This clock against rank 0's: of some round trips, the quickest tells best."""
    offset = 0.0
    for rank in range(1, world.size):
        if world.rank not in (0, rank):
            continue
        best = float("inf")
        for _ in range(5):
            stamp = torch.zeros(1, dtype=torch.float64)
            if world.is_main:
                dist.recv(stamp, rank)
                dist.send(torch.tensor([time.time()], dtype=torch.float64), rank)
                continue
            began = time.time()
            dist.send(stamp, 0)
            dist.recv(stamp, 0)
            ended = time.time()
            if ended - began < best:
                best, offset = ended - began, (began + ended) / 2 - stamp.item()
    if abs(offset) > CLOCK_SECONDS:
        return Finding(
            f"{offset:+.1f} s from rank 0's", "have the administrators start chrony or ntpd"
        )
    return Finding(f"within {CLOCK_SECONDS:g} s of rank 0's")


def _sums(world: distributed.World) -> Finding:
    """Bus bandwidth of an all-reduce, as nccl-tests counts it: 2 (n - 1) / n bytes per byte."""
    tensor = torch.ones(SUM_MIB * 2**18, device=world.device)
    distributed.all_reduce_sum(tensor)  # sets up the connections
    expected = float(world.size)
    right = bool((tensor == expected).all())
    _finish(world)
    rounds, began = 3, time.perf_counter()
    for _ in range(rounds):
        distributed.all_reduce_sum(tensor)
    _finish(world)
    seconds = torch.tensor([(time.perf_counter() - began) / rounds])
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    moved = SUM_MIB * 2**20 * 2 * (world.size - 1) / world.size
    backend = "NCCL" if world.device.type == "cuda" else "gloo"
    text = f"{SUM_MIB} MiB over {backend}: {moved / seconds.item() / 1e9:.2f} GB/s"
    if not right:
        return Finding(text, "the sum is wrong: run nccl-tests on these nodes")
    return Finding(text)


def _finish(world: distributed.World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)


def _print(everyone: list[tuple[str, dict[str, Finding]]]) -> None:
    table = Table()
    for column in ("check", "where", "result", "what to do"):
        table.add_column(column, overflow="fold")
    names = list(dict.fromkeys(name for _, findings in everyone for name in findings))
    for name in names:
        groups: dict[Finding, list[str]] = {}
        for rank, (host, findings) in enumerate(everyone):
            groups.setdefault(findings[name], []).append(f"rank {rank} ({host})")
        for finding, where in groups.items():
            advice = finding.advice
            if name == "versions" and len(groups) > 1 and not advice:
                advice = "install the same versions on all nodes"
            place = "all" if len(where) == len(everyone) else ", ".join(where)
            table.add_row(name, place, finding.text, advice or "ok")
    console = Console(markup=False, highlight=False, emoji=False)
    console.width = max(console.width, 100)
    console.print(table)


if __name__ == "__main__":
    main()
