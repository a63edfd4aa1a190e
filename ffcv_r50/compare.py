"""What makes runs different: settings, accuracy, classes, images.

::

    python -m ffcv_r50.compare A B [C ...] [-o CURVES.png]

A, B, ... are folders of runs. Each is compared with the first, over the validation samples that both
were evaluated on (``predictions.npz``): the difference of their accuracies with a 95 % interval by
bootstrap, whether it could be chance by McNemar's exact test, which classes and which images moved.
Runs that differ in nothing but ``training.seed`` count as one thing tried several times; where there
are two such groups, their mean difference over seeds is given too. ``-o`` draws top-1 and training
loss over the epochs, all runs on one axis.
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ffcv_r50.config import command_line
from ffcv_r50.errors import UserError, exit_with, one_line
from ffcv_r50.registry import Options
from ffcv_r50.report import folder
from ffcv_r50.report.folder import Predictions, Run
from ffcv_r50.report.numbers import (
    Floats,
    Interval,
    Paired,
    bootstrap_difference,
    mcnemar,
    share,
    wilson,
)
from ffcv_r50.run import compatibility

SEED = "training.seed"
MOST_CLASSES = 5
"""Of those that moved most, up and down."""
MOST_IMAGES = 8
"""Of those that were lost and won, the surest first."""


class Asked(Options):
    """What is drawn."""

    output: str | None = None
    """A picture of the curves, such as `curves.png`; `-o` for short. Needs the extra `plots`."""


class Difference(NamedTuple):
    """Of two runs, over the samples of one validation set."""

    accuracy: float
    """b - a, of 1."""
    interval: Interval
    """95 % of it, by bootstrap."""
    paired: Paired
    """McNemar's exact test."""
    classes: Floats
    """[classes] the share of each class's samples that b has right and a has not, less the reverse;
    nan where there are no samples."""
    lost: list[int]
    """Samples that a has right and b has not, those first of which b is surest."""
    won: list[int]
    """The reverse, those first of which a was surest."""


def difference(a: Predictions, b: Predictions) -> Difference:
    """What changes from one network to another.

    Raises:
        UserError: they were not evaluated on the same samples.
    """
    if not np.array_equal(a.index, b.index) or not np.array_equal(a.target, b.target):
        raise UserError("were not evaluated on the same samples; evaluate both on one file")
    count = int(a.target.max()) + 1
    support = np.bincount(a.target, minlength=count)
    moved = np.bincount(a.target, b.right.astype(float) - a.right, minlength=count)
    lost, won = np.flatnonzero(a.right & ~b.right), np.flatnonzero(b.right & ~a.right)
    return Difference(
        float(b.right.mean() - a.right.mean()),
        bootstrap_difference(a.right, b.right),
        mcnemar(a.right, b.right),
        share(moved, support),
        [int(a.index[i]) for i in lost[np.argsort(-b.confidence[lost], kind="stable")]],
        [int(a.index[i]) for i in won[np.argsort(-a.confidence[won], kind="stable")]],
    )


class Group(NamedTuple):
    """Runs that differ in their seed alone."""

    names: str
    top_1: dict[int, float]
    """In %, by seed."""


def groups(runs: Sequence[tuple[str, dict[str, Any], float]]) -> list[Group]:
    """Runs by what they have in common.

    Args:
        runs: of each its name, its settings and its top-1 in %.
    """
    found: list[tuple[dict[str, Any], Group]] = []
    for name, settings, top_1 in runs:
        rest = {key: value for key, value in settings.items() if key != SEED}
        seed = int(settings[SEED])
        for i, (others, group) in enumerate(found):
            if others == rest and seed not in group.top_1:
                joined = Group(f"{group.names}, {name}", group.top_1 | {seed: top_1})
                found[i] = others, joined
                break
        else:
            found.append((rest, Group(name, {seed: top_1})))
    return [group for _, group in found]


def over_seeds(a: Group, b: Group) -> tuple[float, float]:
    """The mean difference b - a and its standard error, in points of %.

    Paired by seed where both have the same seeds: then both saw the same samples in the same order.
    """
    if a.top_1.keys() == b.top_1.keys():
        each = [b.top_1[seed] - a.top_1[seed] for seed in a.top_1]
        return statistics.mean(each), statistics.stdev(each) / len(each) ** 0.5
    means = [statistics.mean(group.top_1.values()) for group in (a, b)]
    errors = [statistics.variance(g.top_1.values()) / len(g.top_1) for g in (a, b)]
    return means[1] - means[0], sum(errors) ** 0.5


# ------------------------------------------------------------------------------------- the program


def main(argv: Sequence[str]) -> None:
    """Print what the command line asks for.

    Raises:
        UserError: fewer than two runs, one that cannot be read, or a fault on the command line.
    """
    names, asked, unknown = command_line.with_names(Asked, argv, __doc__ or "")
    command_line.refuse(unknown)
    if len(names) < 2:
        raise UserError(
            "command line: pass the folders of at least two runs, such as runs/a runs/b"
        )
    runs = [folder.read(Path(word)) for word in names]
    settings = [compatibility.saved_settings(run.path) for run in runs]
    console = Console(soft_wrap=True, highlight=False)
    for part in _page(runs, settings):
        console.print(part)
    if asked.output:
        draw(runs, Path(asked.output))
        console.print(Text(f"\n{asked.output}: top-1 and training loss over the epochs"))


def _page(runs: Sequence[Run], settings: Sequence[dict[str, Any]]) -> Iterator[Table | Text]:
    """The parts of what is printed."""
    yield _summary(runs)
    yield _settings(settings)
    for number, run in enumerate(runs[1:], 2):
        if runs[0].predictions is None or run.predictions is None:
            missing = runs[0].path if runs[0].predictions is None else run.path
            yield Text(f"\n1 -> {number}: {missing} has no {folder.PREDICTIONS}")
            continue
        try:
            found = difference(runs[0].predictions, run.predictions)
        except UserError as error:
            yield Text(f"\n1 -> {number}: {error}")
        else:
            yield Text(f"\n1 -> {number}: {_in_words(found, runs[0].class_names)}")
    tried = [
        (str(i), values, float(run.last["top_1"]))
        for i, (run, values) in enumerate(zip(runs, settings, strict=True), 1)
    ]
    several = [group for group in groups(tried) if len(group.top_1) > 1]
    for group in several[1:]:
        mean, spread = over_seeds(several[0], group)
        yield Text(
            f"\nover seeds, runs {several[0].names} -> {group.names}: top-1 {mean:+.2f} points, "
            f"standard error {spread:.2f}"
        )


def _summary(runs: Sequence[Run]) -> Table:
    """How good each is."""
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    table.add_column("")
    table.add_column("run", overflow="fold")
    for head in ("epochs", "top-1", "95 %", "best", "loss"):
        table.add_column(head, justify="right", no_wrap=True)
    for number, run in enumerate(runs, 1):
        top_1 = float(run.last["top_1"])
        interval = ""
        if run.evaluated:
            low, high = wilson(round(top_1 / 100 * run.evaluated), run.evaluated)
            interval = f"{100 * low:.2f} to {100 * high:.2f}"
        table.add_row(
            str(number),
            Text(one_line(str(run.path))),
            str(len(run.rows)),
            f"{top_1:.2f}",
            interval,
            f"{np.nanmax(run.column('top_1')):.2f}",
            f"{run.column('val_loss')[-1]:.4f}",
        )
    return table


def _settings(settings: Sequence[dict[str, Any]]) -> Table | Text:
    """What differs, a row a setting."""
    keys = sorted({key for values in settings for key in values})
    different = [
        key for key in keys if any(values.get(key) != settings[0].get(key) for values in settings)
    ]
    if not different:
        return Text("\nno setting that shapes a result differs")
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    table.add_column("setting", overflow="fold")
    for number in range(1, len(settings) + 1):
        table.add_column(str(number), overflow="fold")
    for key in different:
        table.add_row(key, *(Text(one_line(str(v.get(key, "-")))) for v in settings))
    return table


def _in_words(found: Difference, names: Sequence[str]) -> str:
    """A paragraph."""
    low, high = found.interval
    paired = found.paired
    lines = [
        f"top-1 {100 * found.accuracy:+.2f} points (95 % {100 * low:+.2f} to {100 * high:+.2f}); "
        f"{paired.only_b:,} images won, {paired.only_a:,} lost, "
        f"{'p < 0.0001' if paired.p_value < 1e-4 else f'p = {paired.p_value:.4f}'} (McNemar, exact)"
    ]
    order = [int(i) for i in np.argsort(found.classes, kind="stable") if found.classes[i]]
    order = [i for i in order if np.isfinite(found.classes[i])]
    moves = {
        "classes that gained": [i for i in order[::-1] if found.classes[i] > 0],
        "classes that lost": [i for i in order if found.classes[i] < 0],
    }
    for title, moved in moves.items():
        texts = [f"{names[i]} {100 * found.classes[i]:+.1f}" for i in moved[:MOST_CLASSES]]
        lines.append(f"  {title}: {one_line(', '.join(texts)) or 'none'}")
    for title, images in (("images won", found.won), ("images lost", found.lost)):
        shown = ", ".join(map(str, images[:MOST_IMAGES])) or "none"
        more = f" and {len(images) - MOST_IMAGES:,} more" if len(images) > MOST_IMAGES else ""
        lines.append(f"  {title}, by index: {shown}{more}")
    return "\n".join(lines)


def draw(runs: Sequence[Run], path: Path) -> None:
    """Top-1 and training loss over the epochs, as a picture.

    Raises:
        UserError: matplotlib is missing, or the picture cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            f"--output={path}: needs matplotlib: pip install 'ffcv_r50[plots]'"
        ) from error
    figure = Figure(figsize=(8, 6), layout="constrained")
    accuracy, loss = figure.subplots(2, sharex=True)
    for number, run in enumerate(runs, 1):
        name = f"{number}: {run.path.name}"
        accuracy.plot(run.ends, run.column("top_1"), label=name, marker=".")
        loss.plot(run.ends, run.column("train_loss"), marker=".")
    accuracy.set_ylabel("top-1, %")
    loss.set(ylabel="training loss", xlabel="epochs")
    accuracy.legend(frameon=False)
    for axes in (accuracy, loss):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"--output={path}: cannot be written ({error})") from error


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
