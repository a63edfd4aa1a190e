"""How many images a second come from a file that memory does not hold, on a slow disk.

    python -m benchmarks.cold_disk --dataset=train.beton --rate=200 --latency=1 --memory=600

puts the file behind a disk that gives `rate` MB/s, as a FUSE mount of its own, and decodes training
batches from it, without and with reading ahead by turns. Each measurement has a mount of its own, so
nothing is in the page cache; `memory` limits what the page cache may hold. Root is needed.

`MB needed` is what the decoding reads, to the byte; `MB read` what the disk was asked for.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

from benchmarks.slow_disk import Disk, mounted
from ffcv_r50.config import command_line
from ffcv_r50.data import read_ahead
from ffcv_r50.data.beton import Beton
from ffcv_r50.data.loader import TrainLoader
from ffcv_r50.errors import UserError, exit_with
from ffcv_r50.registry import Options, Range

Count = Annotated[int, Range(at_least=1)]
NotNegative = Annotated[float, Range(at_least=0)]


class Measured(Options):
    """What is measured."""

    dataset: str
    """A `.beton` file; memory has to hold it beside what is measured, so that the disk behind the disk is
    none."""
    order: str = "random,quasi_random"
    """Orders, separated by commas."""
    rate: Annotated[float, Range(above=0)] = 200.0
    """1e6 bytes a second."""
    latency: NotNegative = 1.0
    """Milliseconds from a request to its answer, besides the transfer."""
    seek: NotNegative = 0.0
    """Milliseconds before a transfer that does not begin where the last one ended, as a spinning disk
    needs them."""
    memory: Annotated[int, Range(at_least=0)] = 0
    """2^20 bytes that may be allocated and held in the page cache after the imports; 0 sets no limit."""
    resolution: Count = 160
    """Side in pixels."""
    batch_size: Count = 512
    """Images of a batch."""
    batches: Count = 20
    """Of a measurement, the last ones of an epoch."""
    rounds: Count = 3
    """Measurements of each kind, of which the medians are shown."""
    workers: Count = os.cpu_count() or 1
    """Decoding threads."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """Of one measurement."""

    images_per_second: float
    needed: float
    """1e6 bytes."""
    read: float
    """1e6 bytes."""
    rate: float
    """1e6 bytes read a second."""
    longest_wait: float
    """For a batch, in seconds."""


def main() -> None:
    """Measure, report."""
    options = command_line.read(Measured, sys.argv[1:], usage=__doc__ or "")
    dataset = Beton(options.dataset)
    if dataset.num_samples < options.batches * options.batch_size:
        raise UserError(
            f"{dataset.path}: has {dataset.num_samples:,} samples, fewer than {options.batches} batches of "
            f"{options.batch_size}; choose fewer with --batches"
        )
    with open(dataset.path, "rb") as file:
        while file.read(1 << 24):
            pass
    print("| order | read ahead | images/s | MB needed | MB read | MB/s | longest wait in s |")
    print("|---|---|---|---|---|---|---|")
    for order in options.order.split(","):
        seen: dict[bool, list[Figures]] = {False: [], True: []}
        for _ in range(options.rounds):
            for ahead in seen:
                seen[ahead].append(_in_a_process(options, order, ahead))
        for ahead, figures in seen.items():
            columns = zip(*map(dataclasses.astuple, figures), strict=True)
            speed, needed, read, rate, wait = map(statistics.median, columns)
            print(
                f"| {order} | {'yes' if ahead else 'no'} | {speed:,.0f} | {needed:,.0f} | {read:,.0f} | "
                f"{rate:.0f} | {wait:.2f} |",
                flush=True,
            )


def _in_a_process(options: Measured, order: str, ahead: bool) -> Figures:
    """A process of its own each time, since memory stays with the limit under which it was taken."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(theirs, options, order, ahead))
    process.start()
    theirs.close()
    try:
        figures: Figures | UserError = ours.recv()
    except EOFError:
        raise UserError("a measurement ended, see its message above") from None
    finally:
        process.join()
    if isinstance(figures, UserError):
        raise figures
    return figures


def _measure(answer: Connection, options: Measured, order: str, ahead: bool) -> None:
    disk = Disk(options.rate * 1e6, options.latency / 1e3, options.seek / 1e3)
    if not ahead:
        read_ahead.advise = lambda file, wanted, stopped: None
    settings: dict[str, Any] = {
        "seed": 0,
        "batch_size": options.batch_size,
        "micro_batch_size": options.batch_size,
        "num_workers": options.workers,
        "order": order,
    }
    try:
        source = Path(options.dataset)
        with TrainLoader(Beton(source), **settings).epoch(0, options.resolution) as batches:
            next(batches)  # compiles
        with (
            tempfile.TemporaryDirectory() as folder,
            mounted(source, Path(folder, "cold.beton"), disk) as file,
            _limited_to(options.memory << 20),
        ):
            loader = TrainLoader(Beton(file.path), **settings)
            before = file.counts
            start = last = time.perf_counter()
            longest = 0.0
            first = loader.steps_per_epoch - options.batches
            with loader.epoch(0, options.resolution, first) as batches:
                for _ in batches:
                    now = time.perf_counter()
                    longest, last = max(longest, now - last), now
            seconds = last - start
            read = (file.counts.bytes - before.bytes) / 1e6
            views = loader.views(0)[first:]
            needed = sum(
                read_ahead.ranges(loader._stored, loader._sampling, batch).size for batch in views
            )
            speed = views.size / seconds
            answer.send(Figures(speed, needed / 1e6, read, read / seconds, longest))
            del batches, loader  # closes the file
    except UserError as error:
        answer.send(error)


@contextlib.contextmanager
def _limited_to(memory: int) -> Iterator[None]:
    """Have this process take only so many bytes more, pages of files among them.

    Raises:
        UserError: this machine does not permit it.
    """
    if not memory:
        yield
        return
    groups = dict(
        line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines()
    )
    if "memory" in groups:
        home, limit = Path(f"/sys/fs/cgroup/memory{groups['memory']}"), "memory.limit_in_bytes"
    else:
        home, limit = Path(f"/sys/fs/cgroup{groups.get('', '')}"), "memory.max"
    group = home / f"cold-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(memory))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        raise UserError(
            f"{group}: memory cannot be limited ({error}); leave out --memory"
        ) from error
    try:
        yield
    finally:
        (home / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


if __name__ == "__main__":
    exit_with(main)
