"""Which side is the bottleneck: the training step, or the loader?

    python -m benchmarks.train_step [--config rcp/rn50_88ep.yaml] [--resolution 160]
        [--steps 20] [--rounds 5] [--json FILE] [--section.key=value ...]

Measures, interleaved over several rounds, the images per second of the training step on images
that already lie on the device, of the loader alone, and of both together, and prints the medians.
``ratio`` is both / min(step, loader): 1 means that the slower side hides the faster one entirely.

Measures also what surviving costs. ``save_seconds`` is what the training step alone loses by one
save of the whole state, from its call until the thread has written it, to a temporary folder:
the time of that, less that of as many steps without. ``vote_seconds`` is what the agreement on
stopping adds to a step, bounded from above by the whole all-reduce that also carries the loss and
batch-norm's statistics. ``overhead_percent`` is the share of both with a save every 60 s.

Without ``--data.train_dataset`` it writes photo-like images of its own; without ``--config`` it
takes ResNet-50 with a batch of 512 on a GPU and ResNet-18 with a batch of 64 on a CPU. Under
torchrun each figure is the sum over all processes.
"""

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from rich.console import Console
from rich.table import Table

from ffcv_r50 import distributed, recipe
from ffcv_r50.config import command_line, reference, settings
from ffcv_r50.config.settings import Config
from ffcv_r50.data import transfer
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import exit_with
from ffcv_r50.logs.console import duration
from ffcv_r50.registry import Options, Range
from ffcv_r50.run import checkpoint
from ffcv_r50.training import loaders
from ffcv_r50.training.learner import Learner, Monitor
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
    words = command_line.split(sys.argv[1:])
    if "help" in words:
        reference.print_page(reference.help_text(Measured, __doc__ or ""))
        return
    options = command_line.take(Measured, words)
    if not {"config", "training.batch_size"} & words.keys():
        words |= _default_run(torch.cuda.is_available())
    config = settings.resolve(words, needs_data=False)
    with (
        distributed.world(config.dist.timeout_seconds) as world,
        _dataset(config, world) as dataset,
    ):
        row = measure(config, options, dataset, world)
        if world.is_main:
            _show(row, config, options)
            if options.json_file:
                Path(options.json_file).write_text(json.dumps(row, indent=1) + "\n")


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
) -> dict[str, str | float]:
    """The medians over all rounds, under the keys of ``--json``."""
    plan = recipe.plan(config, world.size)
    learner = Learner(config, dataset.num_classes, plan.micro_batches, world, plan.group_size)
    loader = loaders.train_loader(config, dataset, plan, world)
    epochs = iter(range(sys.maxsize))

    @contextlib.contextmanager
    def loaded() -> Iterator[Iterator[tuple[torch.Tensor, torch.Tensor]]]:
        def parts() -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
            while True:
                with loader.epoch(next(epochs), options.resolution) as batches:
                    yield from transfer.to_device(batches, world.device)

        stream = parts()
        with contextlib.closing(stream):
            yield stream

    shape = (plan.micro_batch_size, options.resolution, options.resolution, 3)
    images = torch.randint(256, shape, dtype=torch.uint8, device=world.device).permute(0, 3, 1, 2)
    labels = torch.randint(dataset.num_classes, shape[:1], device=world.device)

    def train(parts: Iterator[tuple[torch.Tensor, torch.Tensor]], steps: int) -> None:
        monitor = Monitor(world.device, skips_overflows=True)
        for step in range(steps):
            monitor.push(step, learner.step(parts, lr=1e-4, number=step))
        monitor.check()

    def step_only() -> float:
        parts = iter(lambda: (images, labels), None)
        return _rate(lambda steps: train(parts, steps), config, options, world)

    def loader_only() -> float:
        def take(steps: int) -> None:
            for _ in range(steps * plan.micro_batches):
                next(parts)

        with loaded() as parts:
            return _rate(take, config, options, world)

    def both() -> float:
        with loaded() as parts:
            return _rate(lambda steps: train(parts, steps), config, options, world)

    def save(saver: checkpoint.Saver) -> float:
        """Seconds that the step alone loses by one save."""
        parts = iter(lambda: (images, labels), None)
        train(parts, 2)
        _wait(world)
        seconds = []
        for _ in range(options.steps):
            began = time.perf_counter()
            train(parts, 1)
            distributed.broadcast_object(True)
            seconds.append(time.perf_counter() - began)
        steps, began = 0, time.perf_counter()
        if world.is_main:
            saver.save({"learner": learner.state_dict(), "config": config.to_yaml()})
        while distributed.broadcast_object(saver.writing):
            train(parts, 1)
            steps += 1
        lost = time.perf_counter() - began - steps * statistics.median(seconds)
        saver.finish()
        return lost

    def vote() -> float:
        """Seconds a step that the ranks need to agree on whether to stop."""
        repeats = 100
        sums = torch.zeros(2 + learner.statistics.size, device=world.device)
        _wait(world)
        began = time.perf_counter()
        for _ in range(repeats):
            sums[1] = float(False) * plan.micro_batches
            distributed.all_reduce_sum(sums)
            _ = sums[1] / plan.micro_batches
        _wait(world)
        return (time.perf_counter() - began) / repeats

    kinds: dict[str, Callable[[], float]] = {
        "step": step_only,
        "loader": loader_only,
        "both": both,
    }
    rates: dict[str, list[float]] = {kind: [] for kind in (*kinds, "save", "vote")}
    with _temporary_folder(world) as folder:
        saver = checkpoint.Saver(folder, 0.0, print)
        began = time.monotonic()
        for done in range(1, options.rounds + 1):
            for kind, run in kinds.items():
                rates[kind].append(run())
            rates["save"].append(save(saver))
            rates["vote"].append(vote())
            if world.is_main:
                left = (options.rounds - done) * (time.monotonic() - began) / done
                print(
                    f"round {done}/{options.rounds}: step {rates['step'][-1]:,.0f}, loader "
                    f"{rates['loader'][-1]:,.0f}, both {rates['both'][-1]:,.0f} images/s; "
                    f"{duration(left)} left",
                    flush=True,
                )
    step, load, together, save_seconds, vote_seconds = (
        statistics.median(values) for values in rates.values()
    )
    step_seconds = config.training.batch_size / step
    return {
        "step_images_per_second": step,
        "loader_images_per_second": load,
        "both_images_per_second": together,
        "ratio": together / min(step, load),
        "bottleneck": "step" if step < load else "loader",
        "save_seconds": save_seconds,
        "vote_seconds": vote_seconds,
        "overhead_percent": 100 * (save_seconds / SAVE_INTERVAL + vote_seconds / step_seconds),
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
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
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    distributed.all_reduce_sum(torch.zeros(1, device=world.device))


@contextlib.contextmanager
def _dataset(config: Config, world: distributed.World) -> Iterator[Beton]:
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


def _show(row: dict[str, str | float], config: Config, options: Measured) -> None:
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


if __name__ == "__main__":
    exit_with(main, together=True)
