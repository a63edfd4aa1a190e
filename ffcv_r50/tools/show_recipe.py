"""A recipe as a page of text: its plan, its epochs, and where its operations go."""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ffcv_r50 import build, recipe
from ffcv_r50.config import reference
from ffcv_r50.config.settings import Config
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import UserError, exit_with
from ffcv_r50.keyframes import Keyframes, Varying
from ffcv_r50.models import sizes
from ffcv_r50.optim import OPTIMIZERS, layers
from ffcv_r50.optim.clipping import CLIPPINGS
from ffcv_r50.optim.clipping.none import Unclipped
from ffcv_r50.registry import Options, Range
from ffcv_r50.tools import flops, imagenet, recipe_words
from ffcv_r50.tools.estimate import probe
from ffcv_r50.tools.estimate.needs import Images
from ffcv_r50.tools.estimate.page import Asked, estimate
from ffcv_r50.training.averages import AVERAGES
from ffcv_r50.training.losses import LOSSES
from ffcv_r50.training.losses.cross_entropy import CrossEntropy
from ffcv_r50.training.sam import PLAIN
from ffcv_r50.training.transforms import TRANSFORMS

WIDTH = 88
"""Columns that text is wrapped at."""

USAGE = """\
usage: python -m ffcv_r50.tools.show_recipe FILE [--world-size N] [--samples N] [--hardware h100x8]
           [--price P] [--cores N] [--preemptions 2/week] [--probe] [--section.key=value ...]

Print what a recipe does, epoch by epoch, without data or GPU: resolution, learning rate, steps,
floating-point operations and where they go, and how N processes share each step. With --hardware,
also the hours it takes there, and the cores, disk and memory that it needs. With --probe, train some
steps on this machine's GPU to find the largest training.norm_batch_size that fits into its memory.
"""

Number = Annotated[int, Range(at_least=1, at_most=10**12)]


class Page(Asked):
    """What the page is for; every other word on the command line is a setting of the recipe."""

    world_size: Number | None = None
    """Processes; null is as many as `hardware` has GPUs, or one."""
    samples: Number | None = None
    """Training images; null stands for those in `data.train_dataset`, or ImageNet's."""
    probe: bool = False
    """Find the largest `training.norm_batch_size` that fits into the memory of this machine's GPU."""


class Dataset(NamedTuple):
    """What the table needs to know of the data."""

    samples: int
    val_samples: int | None
    classes: int
    origin: str
    """Where the numbers come from."""


def main() -> None:
    """Print the recipe named on the command line; exit as :func:`errors.exit_with` says."""
    exit_with(lambda: show(sys.argv[1:]))


def show(argv: Sequence[str]) -> None:
    """Print a recipe: its header, plan, epoch-by-epoch table, and where its operations go.

    Args:
        argv: see :data:`USAGE`.

    Raises:
        UserError: a fault in the recipe, or processes that cannot share its steps.
    """
    path, options, config = recipe_words.read(argv, Page, USAGE)
    if options.probe:
        probe.check_gpu()
    dataset = _dataset(config, options.samples)
    machine = options.machine(options.world_size)
    world_size = machine.gpus if machine else options.world_size or 1
    console = Console(markup=False, highlight=False, emoji=False)
    console.width = 10_000  # tables as wide as they are: rich cuts digits off to fit a terminal
    with console.capture() as page:  # nothing is printed of a recipe that has a fault
        console.print(*_header(path), "", soft_wrap=True, sep="\n")
        console.print(_facts(config, dataset, world_size))
        console.print()
        console.print(_epochs(config, dataset))
        console.print(
            "\nStart, end: the first and the last step of the epoch. GFLOP: forward and backward pass, a\n"
            "multiply-add as two; convolutions and matrix products only.\n"
        )
        console.print(_parts(config, dataset))
        if machine:
            trained = _steps(config, dataset) * config.training.batch_size
            images = Images(trained, dataset.samples, dataset.val_samples or 0, dataset.classes)
            console.print("", estimate(config, images, machine, options), sep="\n")
    reference.print_page("\n".join(line.rstrip() for line in page.get().splitlines()))
    if options.probe:
        probe.show(config, dataset.classes, _steps(config, dataset), world_size)


def _header(path: Path) -> list[str]:
    """The first paragraph of the comment that the file begins with; else its name.

    A first line that tells editors which schema the file has is none of it.
    """
    lines = path.read_text("utf-8-sig").splitlines()
    if lines and lines[0].startswith("# yaml-language-server:"):
        del lines[0]
    comment = itertools.takewhile(lambda line: line.startswith("#") and line.strip("# "), lines)
    return [line.removeprefix("#").strip() for line in comment] or [str(path)]


def _dataset(config: Config, samples: int | None) -> Dataset:
    train, val = (Path(p) for p in (config.data.train_dataset, config.data.val_dataset))
    val_samples = Beton(val).num_samples if val.is_file() else None
    if train.is_file():
        beton = Beton(train)
        origin = f"counted in {train}" if samples is None else "--samples"
        return Dataset(samples or beton.num_samples, val_samples, beton.num_classes, origin)
    if samples is not None:
        return Dataset(samples, val_samples, imagenet.CLASSES, "--samples; classes as in ImageNet")
    why = _absent("data.train_dataset", config.data.train_dataset)
    return Dataset(
        imagenet.TRAIN_IMAGES,
        val_samples or imagenet.VAL_IMAGES,
        imagenet.CLASSES,
        f"ImageNet's numbers: {why}",
    )


def _absent(key: str, path: str) -> str:
    return f"{path} does not exist" if path else f"{key} not given"


def _steps(config: Config, dataset: Dataset) -> int:
    steps = dataset.samples // config.training.batch_size
    if not steps:
        raise UserError(
            f"training.batch_size: {config.training.batch_size} is more than the "
            f"{dataset.samples} training images; pass a smaller --training.batch_size"
        )
    return steps


def _facts(config: Config, dataset: Dataset, world_size: int) -> Table:
    training, validation, steps = config.training, config.validation, _steps(config, dataset)
    share = recipe.plan(config, world_size)
    rows = {name: _row(frames) for name, frames in config.schedule.rows.items()}
    constants = {name: f" {getattr(training, name):g}" for name in ("momentum", "weight_decay")}
    constants |= {name: " as scheduled" for name in rows if name in constants}
    optimizer = f"{OPTIMIZERS.name_of(config.optimizer)}, momentum{constants['momentum']}"
    optimizer += _options(config.optimizer)
    decayed = "on everything" if training.decay_norm_and_bias else "not on norms and biases"
    averaged = "flipped images averaged in" if validation.tta == "flip" else "no flips"
    tested = (
        f"images not counted, {_absent('data.val_dataset', config.data.val_dataset)}"
        if dataset.val_samples is None
        else f"{dataset.val_samples:,} images"
    )
    groups = f", shared by groups of {share.group_size} processes" if share.group_size > 1 else ""
    facts = {
        "network": config.model.arch + " with blurpool" * config.model.blurpool,
        "data": f"{dataset.samples:,} images, {dataset.classes:,} classes ({dataset.origin})",
        "optimizer": f"{optimizer}; weight decay{constants['weight_decay']} {decayed}",
        "step": f"{training.batch_size:,} images = {_count(world_size, 'process', 'es')} x "
        f"{_count(share.micro_batches, 'micro-batch', 'es')} x {share.micro_batch_size:,} images; "
        f"batch-norm over {config.norm_batch_size:,}{groups}",
        "epoch": f"{_count(steps, 'step')}, {_shown(config, dataset, steps)}",
        **rows,
        **_chosen(config),
        **_rates(config, dataset),
        "run": f"{_count(training.epochs, 'epoch')}, {training.epochs * steps:,} steps",
        "evaluation": f"each epoch at {validation.resolution} px, crop ratio "
        f"{validation.crop_ratio:g}, {averaged}; {tested}",
    }
    table = Table.grid(padding=(0, 2))
    table.width = WIDTH
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in facts.items():
        table.add_row(name, text)
    for notice in config.notices:
        table.add_row("notice", notice)
    return table


def _shown(config: Config, dataset: Dataset, steps: int) -> str:
    """Which images an epoch shows."""
    size, repeats = config.training.batch_size, config.data.repeats
    if repeats > 1:
        return (
            f"{steps * size:,} views of {steps * -(-size // repeats):,} images, {repeats} of each; "
            "other images each epoch"
        )
    left_out = dataset.samples - steps * size
    return f"{steps * size:,} images; {left_out:,} images are left out, other ones each epoch"


def _short(name: str, value: float) -> str:
    return f"{value:.6f}" if name == "lr" else f"{value:.5g}"


def _row(frames: Keyframes) -> str:
    """A row of the schedule as a recipe writes it."""
    return "{" + ", ".join(f"{key}: {value}" for key, value in frames.to_yaml().items()) + "}"


def _chosen(config: Config) -> dict[str, str]:
    """What a recipe chooses by name, where it does."""
    chosen = {}
    if config.clipping != Unclipped():
        chosen["clipping"] = CLIPPINGS.name_of(config.clipping) + _options(config.clipping)
    if config.sam != PLAIN:
        chosen["sam"] = _options(config.sam).removeprefix(", ") + (
            "; its second passes are not among the operations below"
        )
    if config.loss != CrossEntropy():
        chosen["loss"] = LOSSES.name_of(config.loss) + _options(config.loss)
    if config.augment:
        chosen["augment"] = "; then ".join(
            TRANSFORMS.name_of(t) + _options(t) for t in config.augment
        )
        smaller = [
            f"{height} x {width} of {side} px"
            for side, (height, width) in recipe.seen_sizes(config).items()
            if (height, width) != (side, side)
        ]
        if smaller:
            chosen["input"] = "; ".join(smaller)
    if config.averages:
        chosen["averages"] = "; ".join(AVERAGES.name_of(a) + _options(a) for a in config.averages)
        if (every := config.validation.averages_every) > 1:
            chosen["averages"] += f"; evaluated every {every} epochs"
    return chosen


def _rates(config: Config, dataset: Dataset) -> dict[str, str]:
    """Where parts of the network have learning rates of their own: which."""
    network = sizes.on_meta(num_classes=dataset.classes, **config.model.network)
    build.lr_parts(config, network)  # which knows whether there are such parts
    training = config.training
    rates = [f"{part} x {_value(row)}" for part, row in training.lr_multipliers.items()]
    if training.layer_decay != Varying(1):
        count = 1 + max(layers.depths(network).values())
        rates.append(
            f"x {_value(training.layer_decay)} from each of {count} layers to the next lower"
        )
    return {"rates": "; ".join(rates)} if rates else {}


def _options(thing: Options) -> str:
    return "".join(
        f", {name.replace('_', ' ')}" + ("" if value is True else f" {_value(value)}")
        for name, value in thing
        if value is not False and value is not None
    )


def _value(value: object) -> str:
    if isinstance(value, Keyframes):
        plain = value.to_yaml()
        return _row(value) if isinstance(plain, dict) else f"{plain}"
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, tuple) else f"{value}"


def _epochs(config: Config, dataset: Dataset) -> Table:
    steps = _steps(config, dataset)
    images = steps * config.training.batch_size
    costs = _training_costs(config, dataset)
    sizes = [recipe.resolution(config, epoch) for epoch in range(config.training.epochs)]
    unit, name = _unit(images * max(costs.values()))
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    per_image, per_epoch = "GFLOP\nper image", f"{name}\nper epoch"
    changing = {name: row for name, row in config.rows.items() if name != "resolution"}
    words = [name.replace("_", "\n").replace(".", "\n") for name in changing]
    ends = [f"{name}\n{end}" for name in words for end in ("start", "end")]
    for column in ("epoch", "px", *ends, "steps", "images", per_image, per_epoch):
        table.add_column(column, justify="right", vertical="bottom", no_wrap=True)
    for epoch, size in enumerate(sizes):
        ends_at = (epoch, epoch + (steps - 1) / steps)
        table.add_row(
            str(epoch),
            str(size),
            *[_short(name, row.at(at)) for name, row in changing.items() for at in ends_at],
            f"{steps:,}",
            f"{images:,}",
            f"{costs[size] / 1e9:,.3f}",
            f"{images * costs[size] / unit:,.3f}",
            end_section=epoch == len(sizes) - 1,
        )
    total = images * sum(costs[size] for size in sizes)
    table.add_row(
        "all",
        *[""] * (1 + len(ends)),
        f"{steps * len(sizes):,}",
        f"{images * len(sizes):,}",
        f"{total / images / len(sizes) / 1e9:,.3f}",
        f"{total / unit:,.3f}",
    )
    return table


def _parts(config: Config, dataset: Dataset) -> Table:
    """Where the operations go: parts of the network by resolution, training and evaluation."""
    epochs = config.training.epochs
    images = _steps(config, dataset) * config.training.batch_size
    rows: list[tuple[str, int, dict[str, int]]] = []
    sizes = [recipe.resolution(config, epoch) for epoch in range(epochs)]
    for size, pixels in recipe.seen_sizes(config).items():
        cost = flops.count(config.model, dataset.classes, pixels, training=True)
        rows.append((f"training\nat {size} px", images * sizes.count(size), cost))
    if dataset.val_samples is not None:
        cost = flops.count(
            config.model, dataset.classes, config.validation.resolution, training=False
        )
        passes = 2 if config.validation.tta == "flip" else 1
        seen = dataset.val_samples * epochs * passes
        rows.append((f"evaluation\nat {config.validation.resolution} px", seen, cost))
    total = sum(count * sum(cost.values()) for _, count, cost in rows)
    unit, name = _unit(total)
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    table.add_column(f"{name} of\nthe run", no_wrap=True)
    parts = list(dict.fromkeys(part for _, _, cost in rows for part in cost))
    for row_name, _, _ in rows:
        table.add_column(row_name, justify="right", no_wrap=True)
    table.add_column("all", justify="right", vertical="bottom", no_wrap=True)
    table.add_column("share", justify="right", vertical="bottom", no_wrap=True)
    for part in [*parts, "all"]:
        amounts = [
            count * (sum(cost.values()) if part == "all" else cost.get(part, 0))
            for _, count, cost in rows
        ]
        table.add_row(
            part,
            *[f"{amount / unit:,.3f}" for amount in amounts],
            f"{sum(amounts) / unit:,.3f}",
            f"{sum(amounts) / total:.1%}",
            end_section=part == parts[-1],
        )
    table.add_row(
        "share", *[f"{count * sum(cost.values()) / total:.1%}" for _, count, cost in rows], "100.0%"
    )
    return table


def _training_costs(config: Config, dataset: Dataset) -> dict[int, int]:
    """Operations of a training image by resolution."""
    return {
        side: sum(flops.count(config.model, dataset.classes, seen, training=True).values())
        for side, seen in recipe.seen_sizes(config).items()
    }


def _unit(operations: float) -> tuple[float, str]:
    """The largest unit of which there are ten: 1e18 and EFLOP, and so on."""
    units = [(1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP")]
    return next((unit for unit in units if operations >= 10 * unit[0]), (1e9, "GFLOP"))


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number:,} {what}{plural * (number != 1)}"


if __name__ == "__main__":
    main()
