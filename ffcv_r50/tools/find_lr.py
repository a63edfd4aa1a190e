"""A learning rate to begin with: the loss while the rate grows, on a network that is thrown away.

The range test of Smith 2017 (arXiv:1506.01186), its rates a constant factor apart as fastai's and
Lightning's. Steps are the recipe's own: its batch, its accumulation, its transforms, its optimizer.
How the suggestion is read off, and what it is worth: docs/find_lr.md.
"""

import contextlib
import itertools
import math
import statistics
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import rich.console
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ffcv_r50 import build, distributed, recipe, trainer
from ffcv_r50.config import reference, settings
from ffcv_r50.config.settings import Config
from ffcv_r50.data.loader import TrainLoader
from ffcv_r50.errors import FINISHED, UserError, exit_with
from ffcv_r50.files import atomic_write
from ffcv_r50.keyframes import Keyframes
from ffcv_r50.logs.console import Console
from ffcv_r50.recipe import Plan
from ffcv_r50.registry import Options, Range
from ffcv_r50.tools import recipe_words
from ffcv_r50.training.precision import Precision
from ffcv_r50.training.protocols import Batch, Step

USAGE = """\
usage: python -m ffcv_r50.tools.find_lr FILE --data.train_dataset=FILE [--steps=N] [--lowest=LR] [--highest=LR] [--output=FILE] [--apply] [--section.key=value ...]
       torchrun ... -m ffcv_r50.tools.find_lr ...

Train the recipe's network from its start while the learning rate grows with every step, throw it away,
and suggest a peak for the recipe's schedule. With --apply the run then starts with that peak.
"""

WINDOW = 9
"""Neighbouring losses, of which the median counts: one batch's luck is not the rate's."""
ROWS = 20
"""Of the printed table."""

Rate = Annotated[float, Range(above=0)]


class Finder(Options):
    """How rates are tried."""

    steps: Annotated[int, Range(at_least=50, at_most=100_000)] = 200
    """Optimizer steps, each at a rate that is higher by the same factor."""
    lowest: Rate = 1e-5
    """The rate of the first step."""
    highest: Rate = 100.0
    """The rate of the last step; a test ends before it once the loss is twice that of the start."""
    output: str | None = "lr.png"
    """The picture that is written; null for none."""
    apply: bool = False
    """Start the run, with its `schedule.lr` scaled to the suggested peak. Where `logging.folder` holds
    a run already, nothing is tried: it continues with the rates that it has."""


class Tried(NamedTuple):
    """What came of one rate."""

    rate: float
    loss: float
    """After the step at this rate: over the next batch, before that is trained on."""


def main() -> None:
    """Find a rate for the recipe on the command line; exit as :func:`errors.exit_with` says."""
    exit_with(lambda: find(sys.argv[1:]), together=True)


def find(argv: Sequence[str]) -> int:
    """Print rates, losses and a suggestion, draw them, and start the run where that is asked for.

    Args:
        argv: see :data:`USAGE`.

    Returns:
        The exit code.

    Raises:
        UserError: a fault in the recipe, the data or the command line, or no rate that trains.
    """
    path, options, config = recipe_words.read(argv, Finder, USAGE)
    _check(config, options)
    timeout, deterministic = config.dist.timeout_seconds, config.training.deterministic
    with distributed.world(timeout, deterministic=deterministic) as world:
        console = Console(world.is_main)
        lr = _lr_of_the_run(config, world) if options.apply else None
        if lr:
            console.say(f"{config.logging.folder} holds a run; it continues with the rates it has")
        else:
            with distributed.errors_on_all_ranks():
                if world.is_main:
                    _check_output(options.output)
            tried = try_rates(config, options, world, console)
            best = suggestion(tried)
            lr = with_peak(config.schedule.lr, best)
            with distributed.errors_on_all_ranks():
                if world.is_main:
                    _report(tried, best, lr, f"{path} at batch {config.training.batch_size:,}")
                    _draw(tried, best, options.output)
    if not options.apply:
        return FINISHED
    schedule = config.schedule.model_copy(update={"lr": lr})
    return trainer.run(config.model_copy(update={"schedule": schedule}))


def _check(config: Config, options: Finder) -> None:
    if not config.data.train_dataset:
        raise UserError("data.train_dataset is missing; pass --data.train_dataset=PATH")
    if options.lowest >= options.highest:
        raise UserError(
            f"command line: --lowest={options.lowest:g} is not below --highest={options.highest:g}"
        )
    if options.apply:
        settings.check_data(config)


def _lr_of_the_run(config: Config, world: distributed.World) -> Keyframes | None:
    """Of the run that ``logging.folder`` holds and that will be continued, if any; all ranks."""
    lr = None
    with distributed.errors_on_all_ranks():
        saved = Path(config.logging.folder) / "config.yaml"
        if world.is_main and config.resume.source != "none" and saved.exists():
            lr = settings.load([f"--config={saved}"], needs_data=False).schedule.lr
    return distributed.broadcast_object((lr,))[0]


def with_peak(lr: Keyframes, peak: float) -> Keyframes:
    """The same shape with another highest value; the others have four digits."""
    scaled = lr.scaled(peak / max(lr.values))
    rounded = [point._replace(value=float(f"{point.value:.4g}")) for point in scaled.points]
    return Keyframes(rounded, lr.interpolation)


# ------------------------------------------------------------------------------------------ the test


def try_rates(
    config: Config, options: Finder, world: distributed.World, console: Console
) -> list[Tried]:
    """Train a network of its own while the rate grows; all ranks must call it.

    All but the rate is as where the recipe's schedule has its peak. Nothing is written.

    Returns:
        What came of each rate, up to where the loss is twice that of the start or not finite.
    """
    with distributed.errors_on_all_ranks():
        plan = recipe.plan(config, world.size)
    (train_set,) = build.datasets(config, world, config.data.train_dataset)
    with distributed.errors_on_all_ranks():
        config.loss.check(config.largest_label_smoothing, train_set.num_classes)
        if world.is_main:
            build.check_sizes(config, train_set.num_classes)
        loader = build.train_loader(config, train_set, plan, world)
        build.set_up_torch(config, world.device)
        precision = Precision(config.training.precision, world.device)
        network = build.network(config, train_set.num_classes, world.device)
    train_step = build.train_step(
        config, network, precision, plan, train_set.num_classes, loader.steps_per_epoch, world
    )
    build.start_from_weights(config, train_step.network, console)
    peak = max(config.schedule.lr.points, key=lambda point: point.value).epoch
    values = recipe.values(config, peak)
    resolution = recipe.resolution(config, min(int(peak), config.training.epochs - 1))
    growth = (options.highest / options.lowest) ** (1 / (options.steps - 1))
    rates = [options.lowest * growth**number for number in range(options.steps)]
    losses: list[float] = []
    with (
        contextlib.closing(_batches(loader, resolution, plan, world)) as batches,
        console.bar("trying rates", options.steps) as bar,
    ):
        # One step more than there are rates: a step's loss is what came of the rate before.
        for number, rate in enumerate([*rates, rates[-1]]):
            for group in train_step.optimizer.param_groups:
                group["peak_lr"] = rate  # of the run that would have this rate as its peak
            step = Step(config.training.seed, number, peak, {**values, "lr": rate})
            # The same number on every rank, so all of them end after the same step.
            losses.append(train_step(batches, step)[0].item())
            bar.update(number, f"loss {losses[-1]:.3f}  lr {rate:.3g}")
            diverged = statistics.median(losses[-WINDOW:]) > 2 * losses[0]
            if diverged or not math.isfinite(losses[-1]):
                break
    return [Tried(*pair) for pair in zip(rates, losses[1:], strict=False)]


def _batches(
    loader: TrainLoader, resolution: int, plan: Plan, world: distributed.World
) -> Generator[Batch, None, None]:
    """Those of the run's first epochs, as many as are asked for."""
    for epoch in itertools.count():
        with loader.epoch(epoch, resolution) as loaded:
            yield from build.train_batches(loaded, plan, world)


# ------------------------------------------------------------------------------------ the suggestion


def smoothed(tried: Sequence[Tried]) -> list[float]:
    """For each rate the median of the losses at it and around it; infinity where its own is no number."""
    half, found = WINDOW // 2, []
    for i, each in enumerate(tried):
        around = [near.loss for near in tried[max(0, i - half) : i + half + 1]]
        finite = filter(math.isfinite, around)
        found.append(statistics.median(finite) if math.isfinite(each.loss) else math.inf)
    return found


def suggestion(tried: Sequence[Tried]) -> float:
    """The middle, as a ratio, of the rates that train; see :func:`good_rates`."""
    return float(f"{math.sqrt(math.prod(good_rates(tried))):.2g}")


def good_rates(tried: Sequence[Tried]) -> tuple[float, float]:
    """The first and the last rate at which the loss lies below half of its whole fall.

    Both are where the curve is steep, so noise moves them little, and a hump in between not at all.

    Args:
        tried: rates, increasing, and their losses.

    Raises:
        UserError: the loss falls at no rate, or does not rise again.
    """
    losses = smoothed(tried)
    lowest = min(losses, default=math.inf)
    finite = [pair for pair in zip(tried, losses, strict=True) if math.isfinite(pair[1])]
    usual = statistics.median([abs(each.loss - loss) for each, loss in finite] or [math.inf])
    if not finite or losses[0] - lowest <= 5 * usual:
        raise UserError(
            "the loss fell at no rate; pass another --lowest or --highest, or more --steps, and look at "
            "the images with ffcv_r50.tools.show_batch"
        )
    low = [i for i, loss in enumerate(losses) if loss < (losses[0] + lowest) / 2]
    if low[-1] == len(losses) - 1:
        raise UserError(
            f"the loss is still low at the highest rate, {tried[-1].rate:g}; pass a larger --highest"
        )
    return tried[low[0]].rate, tried[low[-1]].rate


def _report(tried: Sequence[Tried], best: float, lr: Keyframes, where: str) -> None:
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for column in ("rate", "loss", "median"):
        table.add_column(column, justify="right")
    table.add_column()
    nearest = min(range(len(tried)), key=lambda i: abs(math.log(tried[i].rate / best)))
    losses, every = smoothed(tried), -(-len(tried) // ROWS)
    for i, (rate, loss) in enumerate(tried):
        if i in (nearest, len(tried) - 1) or i % every == 0:
            note = "<- suggested" if i == nearest else ""
            table.add_row(f"{rate:.3g}", f"{loss:.4f}", f"{losses[i]:.4f}", note)
    row = ", ".join(f"{epoch}: {value}" for epoch, value in lr.to_yaml().items())
    screen = rich.console.Console(markup=False, highlight=False, soft_wrap=True)
    with screen.capture() as page:
        screen.print(table)
        first, last = good_rates(tried)
        screen.print(
            f"\nRates from {first:.2g} to {last:.2g} train; their middle is the one to try.\n"
            f"Suggested peak: {best:g}. For {where}:\n\nschedule:\n  lr: {{{row}}}"
        )
    reference.print_page(page.get().rstrip("\n"))


def _check_output(output: str | None) -> None:
    if not output:
        return
    try:
        from matplotlib.figure import Figure  # not a dependency of the trainer
    except ImportError as error:
        raise UserError(
            f"--output={output}: needs matplotlib (pip install 'ffcv_r50[plots]'); pass "
            "--output=null for no picture"
        ) from error
    path = Path(output)
    if path.suffix[1:].lower() not in Figure().canvas.get_supported_filetypes():
        raise UserError(f"--output={output}: give it the name of an image, such as .png")
    if not path.parent.is_dir():
        raise UserError(f"--output={output}: there is no folder {path.parent}")


def _draw(tried: Sequence[Tried], best: float, output: str | None) -> None:
    if not output:
        return
    from matplotlib.figure import Figure  # see _check_output

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    rates, losses = [each.rate for each in tried], smoothed(tried)
    axes.plot(rates, [each.loss for each in tried], color="0.8", label="after each step")
    axes.plot(rates, losses, label=f"median of {WINDOW}")
    axes.axvspan(*good_rates(tried), color="0.95", label="rates that train")
    axes.axvline(best, color="black", linestyle="--", label=f"suggested: {best:g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    axes.set_ylim(0, 2 * losses[0])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    try:
        with atomic_write(output) as file:
            figure.savefig(file, format=Path(output).suffix[1:].lower(), dpi=150)
    except OSError as error:
        raise UserError(f"--output={output}: cannot be written ({error.strerror})") from error
    print(f"\n{output}: the losses, with the suggestion marked")


if __name__ == "__main__":
    main()
