"""What each method does to accuracy: a small recipe, varied, over several seeds.

    python -m benchmarks.methods --train_dataset FILE --val_dataset FILE --folder runs/methods
        [--methods benchmarks/averages.yaml] [--seeds 3] [--only NAME,NAME] [--markdown FILE]

``benchmarks/methods.yaml`` (or ``--methods``) has the recipe and what each method changes in it. Each run
is a process of its own on one core, as many at a time as there are cores, one seed after another, so
that the table fills evenly; a run that is finished is not repeated, so the same command continues. The
table has the mean top-1 of each method, its standard deviation over the seeds, and the mean difference
from the recipe as it is with the standard error of that (paired by seed: both saw the same samples);
and the same of the loss on the validation set, which small validation sets tell apart sooner.
"""

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from rich.console import Console
from rich.table import Table

from ffcv_r50.config import command_line
from ffcv_r50.errors import UserError, exit_with, nearest
from ffcv_r50.files import atomic_write
from ffcv_r50.logs import jsonl
from ffcv_r50.logs.console import duration
from ffcv_r50.registry import Options, Range
from ffcv_r50.run.status import read_status
from ffcv_r50.training.averages import AVERAGES

METHODS = Path(__file__).with_suffix(".yaml")
BASE = "the recipe as it is"
TRAIN = Path(__file__).resolve().parents[1] / "train_imagenet.py"


class Compared(Options):
    """What is compared, and where the runs lie."""

    train_dataset: str
    """The `.beton` file to train on."""
    val_dataset: str
    """The `.beton` file to evaluate on."""
    folder: str
    """Of the runs: `METHOD/SEED` each."""
    seeds: Annotated[int, Range(at_least=2, at_most=100)] = 3
    """Runs of each method."""
    methods: str = str(METHODS)
    """The file with the recipe, or with the path to it, and the methods."""
    only: str = ""
    """Methods, separated by commas; empty for all."""
    markdown: str = ""
    """File for the table."""


class Line(NamedTuple):
    """Of the table."""

    name: str
    top_1: list[float]
    """In %, of each seed."""
    loss: list[float]
    """On the validation set, of each seed."""


def main() -> None:
    """Train what is missing and print the table."""
    options = command_line.read(Compared, sys.argv[1:], __doc__ or "")
    table = read(Path(options.methods))
    methods = chosen(table, options.only)
    folder = Path(options.folder)
    recipes = {
        name: write_recipe(folder / file_name(name), changed(table["recipe"], changes))
        for name, changes in methods.items()
    }
    runs = [(name, seed, recipes[name]) for seed in range(options.seeds) for name in methods]
    train(options, runs)
    rows = {(name, seed): last_row(recipe.parent / str(seed)) for name, seed, recipe in runs}
    lines = list(results(rows))
    show(lines)
    if options.markdown:
        with atomic_write(Path(options.markdown)) as file:
            file.write(markdown(lines).encode())


def read(path: Path) -> dict[str, Any]:
    """What is compared; ``recipe`` may be the path to one, beside the file.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        table = yaml.safe_load(path.read_text())
        if isinstance(table["recipe"], str):
            table["recipe"] = yaml.safe_load((path.parent / table["recipe"]).read_text())
        return {key: table[key] for key in ("recipe", "base", "methods")}
    except OSError as error:
        raise UserError(
            f"--methods={path}: {error.filename} cannot be read ({error.strerror})"
        ) from None
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(
            f"--methods={path}: expected recipe, base and methods, as benchmarks/methods.yaml has them"
        ) from error


def chosen(table: Mapping[str, Any], only: str) -> dict[str, Any]:
    """What the recipe as it is, and the methods of these names, change in it.

    Raises:
        UserError: there is none of a name.
    """
    methods = table["methods"]
    names = [name.strip() for name in only.split(",")] if only else [*methods]
    for name in names:
        if name not in methods:
            near = nearest(name, methods)
            raise UserError(
                f"--only: no method '{name}'" + (f"; did you mean {near}?" if near else "")
            )
    return {BASE: table["base"]} | {name: methods[name] for name in names}


def changed(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with other values of some settings; tables of keyframes are replaced whole."""
    return {**recipe} | {
        section: {**recipe.get(section, {}), **values} if isinstance(values, dict) else values
        for section, values in changes.items()
    }


def write_recipe(folder: Path, recipe: Mapping[str, Any]) -> Path:
    """Of the runs in a folder; returns the file.

    Raises:
        UserError: the folder has runs of another one.
    """
    path, text = folder / "recipe.yaml", yaml.safe_dump({**recipe}, sort_keys=False)
    if path.exists() and path.read_text() != text:
        raise UserError(f"{folder}: has runs of another recipe; choose another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def file_name(method: str) -> str:
    """``RandAugment 2-9`` -> ``randaugment-2-9``."""
    return "-".join("".join(c if c.isalnum() else " " for c in method.lower()).split())


def train(options: Compared, runs: list[tuple[str, int, Path]]) -> None:
    """Train each run that is not finished, as many at a time as there are cores.

    Raises:
        UserError: a run failed; its output's last line.
    """
    began, done, lock = time.monotonic(), 0, threading.Lock()
    missing = [run for run in runs if not is_finished(run[2].parent / str(run[1]))]

    def one(name: str, seed: int, recipe: Path) -> None:
        nonlocal done
        folder = recipe.parent / str(seed)
        words = [f"--config={recipe}", f"--training.seed={seed}", f"--logging.folder={folder}"]
        words += [
            f"--data.{key}={getattr(options, key)}" for key in ("train_dataset", "val_dataset")
        ]
        ended = subprocess.run(
            [sys.executable, str(TRAIN), *words, "--data.num_workers=1"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if ended.returncode:
            last = (ended.stdout + ended.stderr).strip().splitlines()[-1:]
            raise UserError(f"{name}, seed {seed}: {' '.join(last)}")
        with lock:
            done += 1
            left = (len(missing) - done) * (time.monotonic() - began) / done
            top_1 = last_row(folder)["top_1"]
            print(
                f"{done:>{len(str(len(missing)))}}/{len(missing)}  {name}, seed {seed}: {top_1:.2f} %; "
                f"{duration(left)} left",
                flush=True,
            )

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        futures = [pool.submit(one, *run) for run in missing]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def is_finished(folder: Path) -> bool:
    """Whether a run has nothing left to do."""
    return bool(read_status(folder).get("state") == "finished")


def last_row(folder: Path) -> dict[str, Any]:
    """Of a run's log."""
    return jsonl.read(folder / "log.jsonl")[-1]


def results(rows: Mapping[tuple[str, int], Mapping[str, Any]]) -> Iterator[Line]:
    """The lines of the table; below a method its averages.

    Args:
        rows: the last of each run's log, for each method and seed.
    """
    seeds = sorted({seed for _, seed in rows})

    def line(method: str, name: str, prefix: str = "") -> Line:
        each = [rows[method, seed] for seed in seeds]
        return Line(name, *([row[prefix + key] for row in each] for key in ("top_1", "val_loss")))

    for method in dict.fromkeys(method for method, _ in rows):
        yield line(method, method)
        for average in AVERAGES.names:
            if f"{average}_top_1" in rows[method, seeds[0]]:
                name = average if method == BASE else f"{method}: {average}"
                yield line(method, name, f"{average}_")


def cells(line: Line, base: Line) -> tuple[str, ...]:
    """Name, mean and spread, difference and its standard error; top-1 and loss."""
    found = [line.name]
    for ours, theirs, digits in ((line.top_1, base.top_1, 2), (line.loss, base.loss, 4)):
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        error = statistics.stdev(differences) / len(differences) ** 0.5
        found.append(f"{statistics.mean(ours):.{digits}f} ± {statistics.stdev(ours):.{digits}f}")
        found.append(f"{statistics.mean(differences):+.{digits}f} ± {error:.{digits}f}")
    return tuple(found) if line is not base else (line.name, found[1], "", found[3], "")


HEADS = (
    "method",
    "top-1 in %, ± deviation",
    "difference, ± standard error",
    "validation loss, ± deviation",
    "difference, ± standard error",
)


def show(lines: list[Line]) -> None:
    """Print the table."""
    table = Table(HEADS[0])
    for head in HEADS[1:]:
        table.add_column(head, justify="right")
    for line in lines:
        table.add_row(*cells(line, lines[0]))
    Console().print(table)


def markdown(lines: list[Line]) -> str:
    """The table as Markdown."""
    rows = [HEADS, ("---", *["---:"] * 4), *(cells(line, lines[0]) for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    exit_with(main)
