"""Which side is the bottleneck: the training step, or the loader?

    python -m benchmarks.train_step [--config rcp/rn50_88ep.yaml] [--resolution 160]
        [--steps 20] [--rounds 5] [--json FILE] [--section.key=value ...]

Measures, interleaved over several rounds, the images per second of the training step on images
that already lie on the device, of the loader alone, and of both together, and prints the medians.
``ratio`` is both / min(step, loader): 1 means that the slower side hides the faster one entirely.

Measures also what surviving costs. ``save_seconds`` is what the training step alone loses by one
save of the whole state, from its call until the thread has written it, to a temporary folder:
the time of that, less that of as many steps without. ``vote_seconds`` bounds what the agreement on
stopping adds to a step from above: an all-reduce of one number by itself, where the step's own
all-reduce carries it. ``overhead_percent`` is the share of both with a save every 60 s.

Under torchrun it measures as well what the sums of gradients over the processes cost: seconds of a
step that sums all at once after its backward passes (as processes of one node do), of one that sums in
buckets during the last of them (as those of several nodes do), and of one that does not sum. Each share
is of the step that it is measured in. What batch-norm sums between processes is in all three.

Without ``--data.train_dataset`` it writes photo-like images of its own; without ``--config`` it
takes ResNet-50 with a batch of 512 on a GPU and ResNet-18 with a batch of 64 on a CPU. Under
torchrun each figure is the sum over all processes.
"""

import contextlib
import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from rich.console import Console
from rich.table import Table

from ffcv_r50 import build, distributed, recipe
from ffcv_r50.config import command_line, reference, settings
from ffcv_r50.config.settings import Config
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import exit_with
from ffcv_r50.logs.console import duration
from ffcv_r50.registry import Options, Range
from ffcv_r50.run import checkpoint
from ffcv_r50.training.metrics import StepMetrics
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.protocols import Batch, Step
from writers import writing
from writers.config import Writing

SYNTHETIC_IMAGES = 1024
SAVE_INTERVAL = 60.0
Count = Annotated[int, Range(at_least=1)]


class Measured(Options):
    """What is measured; every other word on the command line is a setting of the run."""

    resolution: Count = 160
    """Side of the training images in pixels."""
    steps: Count = 20
    """Optimizer steps a measurement."""
    rounds: Count = 5
    """Measurements of each kind; the median counts."""
    json_file: Annotated[str | None, Field(alias="json")] = None
    """File for the medians."""


def main() -> None:
    """Measure and print."""
    config, options = configuration(__doc__ or "")
    with (
        distributed.world(config.dist.timeout_seconds) as world,
        dataset(config, world) as train_set,
    ):
        row = measure(config, options, train_set, world)
        if world.is_main:
            _show(row, config, options)
            if options.json_file:
                Path(options.json_file).write_text(json.dumps(row, indent=1) + "\n")


def configuration(usage: str) -> tuple[Config, Measured]:
    """What the command line asks for, or a run that suits the device.

    Args:
        usage: what ``--help`` prints above the options.
    """
    words = command_line.split(sys.argv[1:])
    if "help" in words:
        reference.print_page(reference.help_text(Measured, usage))
        raise SystemExit(0)
    options = command_line.take(Measured, words)
    if not {"config", "training.batch_size"} & words.keys():
        words |= _default_run(torch.cuda.is_available())
    return settings.resolve(words, needs_data=False), options


def _default_run(cuda: bool) -> dict[str, list[str]]:
    recipe_file = "rn50_88ep.yaml" if cuda else "rn18_16ep.yaml"
    batch = "512" if cuda else "64"
    return {
        "config": [str(Path(__file__).resolve().parents[1] / "rcp" / recipe_file)],
        "training.batch_size": [batch],
        "training.norm_batch_size": [batch],
    }


def measure(
    config: Config, options: Measured, dataset: Beton, world: distributed.World
) -> dict[str, Any]:
    """The medians over all rounds, under the keys of ``--json``."""
    bench = Bench(config, options, dataset, world)
    kinds = bench.kinds
    if world.size > 1:
        kinds = kinds | _sums(config, options, dataset, world)
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    with _temporary_folder(world) as folder:
        bench.saver = checkpoint.Saver(folder, 0.0, print)
        began = time.monotonic()
        for done in range(1, options.rounds + 1):
            for kind, run in kinds.items():
                rates[kind].append(run())
            if world.is_main:
                left = (options.rounds - done) * (time.monotonic() - began) / done
                print(
                    f"round {done}/{options.rounds}: step {rates['step'][-1]:,.0f}, loader "
                    f"{rates['loader'][-1]:,.0f}, both {rates['both'][-1]:,.0f} images/s; "
                    f"{duration(left)} left",
                    flush=True,
                )
    medians = {kind: statistics.median(values) for kind, values in rates.items()}
    step, load = medians["step"], medians["loader"]
    step_seconds = config.training.batch_size / step
    overhead = medians["save"] / SAVE_INTERVAL + medians["vote"] / step_seconds
    row = {
        "step_images_per_second": step,
        "loader_images_per_second": load,
        "both_images_per_second": medians["both"],
        "ratio": medians["both"] / min(step, load),
        "bottleneck": "step" if step < load else "loader",
        "save_seconds": medians["save"],
        "vote_seconds": medians["vote"],
        "overhead_percent": 100 * overhead,
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "processes": world.size,
        "loader_threads": world.size * (config.data.num_workers or world.cores),
        "model": config.model.network,
        "resolution": options.resolution,
    }
    if world.size > 1:
        for kind in ("at_once", "overlapped"):
            row[f"{kind}_seconds"] = config.training.batch_size / medians[kind]
            row[f"{kind}_share"] = 1 - medians[kind] / medians["not_summed"]
    return row


class Bench:
    """The step and the loader of a configuration, and the ways to run them.

    Args:
        config: of the run.
        options: of the measurement.
        dataset: to train on.
        world: this process among its peers.
    """

    saver: checkpoint.Saver

    def __init__(
        self, config: Config, options: Measured, dataset: Beton, world: distributed.World
    ) -> None:
        self.config, self.options, self.world = config, options, world
        self.plan = recipe.plan(config, world.size)
        self.num_classes = dataset.num_classes
        build.set_up_torch(config, world.device)
        precision = Precision(config.training.precision, world.device)
        network = build.network(config, dataset.num_classes, world.device)
        self.loader = build.train_loader(config, dataset, self.plan, world)
        self.train_step = build.train_step(
            config,
            network,
            precision,
            self.plan,
            dataset.num_classes,
            self.loader.steps_per_epoch,
            world,
        )
        self.epochs = iter(range(sys.maxsize))
        self.kinds: dict[str, Callable[[], float]] = {
            "step": self.step_only,
            "loader": self.loader_only,
            "both": self.both,
            "save": self.save,
            "vote": self.vote,
        }
        """Images per second of the first three, seconds of the others."""
        n = self.plan.micro_batch_size
        shape = (n, options.resolution, options.resolution, 3)
        images = torch.randint(256, shape, dtype=torch.uint8, device=world.device)
        labels = torch.randint(dataset.num_classes, (n,), device=world.device)
        numbers = torch.arange(n, device=world.device)
        self.batch = Batch(images.permute(0, 3, 1, 2), labels, numbers, range(n))

    def still(self) -> Iterator[Batch]:
        """The same batch again and again."""
        return itertools.repeat(self.batch)

    @contextlib.contextmanager
    def loaded(self) -> Iterator[Iterator[Batch]]:
        """Batches from the loader, epoch after epoch."""

        def batches() -> Generator[Batch, None, None]:
            while True:
                with self.loader.epoch(next(self.epochs), self.options.resolution) as epoch:
                    yield from build.train_batches(epoch, self.plan, self.world)

        stream = batches()
        with contextlib.closing(stream):
            yield stream

    def train(self, batches: Iterator[Batch], steps: int) -> None:
        """So many steps, and wait for the last."""
        metrics = StepMetrics(self.world.device, skips_overflows=True)
        for number in range(steps):
            metrics.push(self.step(number), self.train_step(batches, self.step(number)))
        metrics.check()

    def step(self, number: int) -> Step:
        """A step with a small learning rate."""
        return Step(0, number, 0.0, recipe.values(self.config, 0.0) | {"lr": 1e-4})

    def step_only(self) -> float:
        """Images per second of the step on a batch that lies on the device."""
        return self.rate(lambda steps: self.train(self.still(), steps))

    def loader_only(self) -> float:
        """Images per second of the loader."""
        with self.loaded() as batches:

            def take(steps: int) -> None:
                for _ in range(steps * self.plan.micro_batches):
                    next(batches)

            return self.rate(take)

    def both(self) -> float:
        """Images per second of the step on the loader's batches."""
        with self.loaded() as batches:
            return self.rate(lambda steps: self.train(batches, steps))

    def rate(self, work: Callable[[int], None]) -> float:
        """Images per second over all processes of ``work``, which is told a number of steps."""
        return _rate(work, self.config, self.options, self.world)

    def save(self) -> float:
        """Seconds that the step alone loses by one save."""
        self.train(self.still(), 2)
        _wait(self.world)
        seconds = []
        for _ in range(self.options.steps):
            began = time.perf_counter()
            self.train(self.still(), 1)
            distributed.broadcast_object(True)
            seconds.append(time.perf_counter() - began)
        steps, began = 0, time.perf_counter()
        if self.world.is_main:
            state = {"learner": self.train_step.state_dict(), "config": self.config.to_yaml()}
            self.saver.save(state)
        while distributed.broadcast_object(self.saver.writing):
            self.train(self.still(), 1)
            steps += 1
        lost = time.perf_counter() - began - steps * statistics.median(seconds)
        self.saver.finish()
        return lost

    def vote(self) -> float:
        """Seconds of an all-reduce of one number: more than the vote adds to the step's own."""
        repeats = 100
        votes = torch.zeros(1, device=self.world.device)
        _wait(self.world)
        began = time.perf_counter()
        for _ in range(repeats):
            votes.fill_(0.0)
            distributed.all_reduce_sum(votes)
        _wait(self.world)
        return (time.perf_counter() - began) / repeats


def _sums(
    config: Config, options: Measured, dataset: Beton, world: distributed.World
) -> dict[str, Callable[[], float]]:
    """Images per second of steps that sum gradients over the processes at once, overlapped, or not."""
    at_once, overlapped = (
        Bench(config, options, dataset, dataclasses.replace(world, local_size=of_a_node))
        for of_a_node in (world.size, 1)
    )

    def not_summed() -> float:
        def nothing(tensor: torch.Tensor) -> Callable[[], object]:
            return lambda: None

        with mock.patch.multiple(
            distributed, begin_all_reduce_sum=nothing, begin_all_reduce_sum_bf16=nothing
        ):
            return at_once.step_only()

    return {
        "at_once": at_once.step_only,
        "overlapped": overlapped.step_only,
        "not_summed": not_summed,
    }


def _rate(
    work: Callable[[int], None], config: Config, options: Measured, world: distributed.World
) -> float:
    """Images per second of ``work(steps)`` over all processes, after two steps to warm up."""
    work(2)
    _wait(world)
    began = time.perf_counter()
    work(options.steps)
    _wait(world)
    return options.steps * config.training.batch_size / (time.perf_counter() - began)


def _wait(world: distributed.World) -> None:
    """Until the devices of all ranks are idle. The sum is over CPU tensors: over a device's it would
    only be put in its queue.
    """
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    distributed.all_reduce_sum(torch.zeros(1))


@contextlib.contextmanager
def dataset(config: Config, world: distributed.World) -> Iterator[Beton]:
    """The training set of ``config``, or a temporary one."""
    if config.data.train_dataset:
        yield Beton(config.data.train_dataset)
        return
    with _temporary_folder(world) as folder:
        path = folder / "synthetic.beton"
        if world.is_main:
            write_synthetic(path, max(SYNTHETIC_IMAGES, config.training.batch_size))
        _wait(world)
        yield Beton(path)


@contextlib.contextmanager
def _temporary_folder(world: distributed.World) -> Iterator[Path]:
    """A folder of rank 0's, for all processes of the machine, until they have all left it."""
    with contextlib.ExitStack() as stack:
        folder = None
        if world.is_main:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield distributed.broadcast_object(folder)
        _wait(world)


def write_synthetic(path: Path, count: int) -> None:
    """Write ``count`` JPEGs of 500 x 375 px with about the detail of a photograph."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            target = Path(folder, str(i % 10), f"{i:06}.jpg")
            target.parent.mkdir(exist_ok=True)
            noise = Image.fromarray(rng.integers(0, 256, (75, 100, 3), dtype=np.uint8))
            noise.resize((500, 375), Image.Resampling.BICUBIC).save(target, quality=90)
        writing.write(Writing(data_dir=folder, write_path=str(path), write_mode="jpg"))


def _show(row: dict[str, Any], config: Config, options: Measured) -> None:
    table = Table(
        title=f"{config.model.arch}, {options.resolution} px, batch {config.training.batch_size}, "
        f"{row['device']}",
        title_justify="left",
    )
    table.add_column("measured")
    table.add_column("images/s", justify="right")
    for kind, name in (
        ("step", "training step alone"),
        ("loader", "loader alone"),
        ("both", "both"),
    ):
        table.add_row(name, f"{row[f'{kind}_images_per_second']:,.0f}")
    console = Console()
    console.print(table)
    console.print(
        f"both / min(step, loader) = {row['ratio']:.2f}; the {row['bottleneck']} is the bottleneck "
        f"(medians of {options.rounds} rounds of {options.steps} steps)"
    )
    console.print(
        f"a save costs the loop {1e3 * float(row['save_seconds']):.0f} ms, the agreement on stopping "
        f"at most {1e6 * float(row['vote_seconds']):.0f} us a step: together "
        f"{row['overhead_percent']:.2f} % with a save every {SAVE_INTERVAL:.0f} s"
    )
    if row["processes"] > 1:
        console.print(
            f"sums over the processes: {row['at_once_share']:.1%} of a step where they follow its "
            f"backward passes, {row['overlapped_share']:.1%} where they overlap with the last of them"
        )


if __name__ == "__main__":
    exit_with(main, together=True)
