"""What a run folder holds, read for a report. Nothing in it is changed, also while the run goes on."""

import contextlib
import functools
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ffcv_r50.config import command_line, settings
from ffcv_r50.config.settings import Config
from ffcv_r50.data.beton import MAX_CLASSES, Beton
from ffcv_r50.errors import UserError, one_line
from ffcv_r50.files import check_archive, read_json, regular_file
from ffcv_r50.logs import jsonl
from ffcv_r50.report import sets
from ffcv_r50.report.numbers import Bools, Floats, Ints, share
from ffcv_r50.run.status import read_status
from ffcv_r50.training.averages import AVERAGES, NETWORK

RECIPES = Path(__file__).resolve().parents[2] / "rcp"
PREDICTIONS = "predictions.npz"
UNREADABLE = (
    OSError, ValueError, TypeError, AttributeError, LookupError, EOFError, MemoryError,
    NotImplementedError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What reading a damaged file of arrays raises."""
MOST_STEPS = 1500
PUBLISHED = re.compile(
    r"Published: (?:up to |about )?([0-9.]+)(?: \+- [0-9.]+)? % top-1(?:, ([0-9.]+) % top-5)?"
)


@dataclass(frozen=True)
class Predictions:
    """Of a network, for each evaluated sample; ascending by index."""

    index: Ints
    """[samples] of the validation set."""
    target: Ints
    """[samples]."""
    classes: Ints
    """[samples, up to 5], the likeliest first."""
    probabilities: Floats
    """[samples, up to 5], of these."""
    loss: Floats
    """[samples] nats."""

    @property
    def predicted(self) -> Ints:
        """[samples]."""
        return self.classes[:, 0]

    @property
    def confidence(self) -> Floats:
        """[samples] the predicted class's probability."""
        return self.probabilities[:, 0]

    @property
    def right(self) -> Bools:
        """[samples] whether the likeliest class is the target."""
        return self.predicted == self.target


class Steps(NamedTuple):
    """Some of the optimizer steps: [recorded] each, nan where a quantity was not recorded."""

    epoch: Floats
    """Where it lies in the run: 2.5 is the middle of the third epoch."""
    loss: Floats
    gradient_norm: Floats
    images_per_second: Floats


class Ledger(NamedTuple):
    """How each training image fared over the epochs that were recorded; [samples] each."""

    loss: Floats
    """Mean, nats; nan where an image was never shown."""
    right: Ints
    """Epochs in which it was right."""
    shown: Ints
    """Epochs in which it was shown."""


class Recipe(NamedTuple):
    """The file that a run was started with, if it is still there."""

    path: Path
    config: Config
    published: dict[str, float]
    """``top_1`` and ``top_5`` in %, what the header says of them."""


@dataclass(frozen=True)
class Run:
    """A run, as far as its folder tells."""

    path: Path
    config: Config
    rows: list[dict[str, Any]]
    """Of the log, one an epoch; at least one."""
    starts: list[dict[str, Any]]
    status: dict[str, Any]
    predictions: Predictions | None

    def column(self, name: str) -> Floats:
        """A quantity by epoch; nan where it was not logged."""
        return np.array([row.get(name, np.nan) for row in self.rows], np.float64)

    @functools.cached_property
    def steps(self) -> Steps:
        """Of which more than their number was recorded; of very many, some."""
        found = map(jsonl.numbers, jsonl.rows(self.path / "steps.jsonl"))
        rows = [row for row in found if "loss" in row and "epoch" in row]
        rows = rows[:: -(-len(rows) // MOST_STEPS) or 1]
        return Steps(
            *(np.array([row.get(key, np.nan) for row in rows], np.float64) for key in Steps._fields)
        )

    @property
    def ends(self) -> Ints:
        """[rows] how many epochs were done when a row was written."""
        return np.array([row["epoch"] + 1 for row in self.rows])

    @property
    def start_rows(self) -> list[int]:
        """Rows of the epochs in which the run was started, the first time or again."""
        return [int(row) for row in np.flatnonzero(np.nan_to_num(self.column("start_seconds")))]

    @property
    def processes(self) -> Ints | None:
        """[rows] how many there were; after a restart in an epoch, those after it. None where nobody
        knows: several starts on different numbers, and not when they were.
        """
        sizes = [start.get("world_size") for start in self.starts]
        if len(set(sizes)) == 1 and isinstance(sizes[0], int):
            return np.full(len(self.rows), sizes[0])
        rows = self.start_rows
        if len(rows) != len(sizes) or rows[:1] != [0]:
            return None
        return np.repeat(np.array(sizes), np.diff([*rows, len(self.rows)]))

    @property
    def last(self) -> dict[str, Any]:
        """The newest row of the log."""
        return self.rows[-1]

    @property
    def averages(self) -> list[str]:
        """The names of those that the run has."""
        return [AVERAGES.name_of(options) for options in self.config.averages]

    @property
    def networks(self) -> list[str]:
        """What the newest row of the log has of the network and its averages: the one that
        ``weights.pt`` is, or will be, comes first."""
        chosen = self.config.checkpoint.weights
        every = [NETWORK, *self.averages]
        logged = [name for name in every if self.key(name, "top_1") in self.last]
        return sorted(logged, key=lambda name: name != chosen)

    @staticmethod
    def key(network: str, quantity: str) -> str:
        """What the log calls a quantity of a network."""
        return quantity if network == NETWORK else f"{network}_{quantity}"

    def final(self, network: str, quantity: str) -> float:
        """What the last row says; nan where it does not."""
        return float(self.last.get(self.key(network, quantity), np.nan))

    @functools.cached_property
    def val_set(self) -> Beton | None:
        """The validation set, if it is still there and the one that was evaluated."""
        return _dataset(self.config.data.val_dataset, self.predictions)

    @functools.cached_property
    def train_set(self) -> Beton | None:
        """The training set, if it is still there."""
        return _dataset(self.config.data.train_dataset, None)

    @functools.cached_property
    def evaluation(self) -> sets.Evaluation | None:
        """The newest one of its weights after the run.

        Raises:
            UserError: its file is damaged.
        """
        return sets.read(self.path)

    @functools.cached_property
    def ledger(self) -> Ledger | None:
        """Of the training set.

        Raises:
            UserError: a file of it is damaged.
        """
        return read_ledger(self.path / "ledger")

    @property
    def evaluated(self) -> int | None:
        """Samples of the validation set, if somebody knows."""
        if self.predictions is not None:
            return len(self.predictions.target)
        return self.val_set.num_samples if self.val_set else None

    @functools.cached_property
    def class_names(self) -> list[str]:
        """By class, in words where they are known; at least as many as occur."""
        sidecar = self.val_set.sidecar if self.val_set else None
        known = sidecar.names if sidecar else []
        if self.predictions is None:
            return known
        highest = int(max(self.predictions.target.max(), self.predictions.classes.max()))
        return known + [f"class {number}" for number in range(len(known), highest + 1)]

    @functools.cached_property
    def recipe(self) -> Recipe | None:
        """What it was started with, if that can still be read."""
        for start in self.starts[:1]:
            try:
                words = command_line.split([str(word) for word in start["command"][1:]])
                given = Path(words["config"][0])
            except (UserError, LookupError, TypeError):
                return None
            for path in (given, self.path / given.name, RECIPES / given.name):
                if path.is_file():
                    return _recipe(path)
        return None


def read(path: Path) -> Run:
    """What the folder of a run holds.

    Raises:
        UserError: there is none, it is none of a run, or no epoch is done; settings or predictions
            cannot be read.
    """
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder; give the folder of a run")
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path}: holds no run, config.yaml is missing; give the folder of a run")
    config = settings.load([f"--config={path / 'config.yaml'}"], needs_data=False)
    try:
        rows = [*_epochs(jsonl.rows(path / "log.jsonl"), config.training.epochs)]
    except OSError as error:
        raise UserError(f"{path}: its log.jsonl cannot be read ({error.strerror})") from error
    if not rows:
        raise UserError(f"{path}: no epoch of this run is done; look again after its first")
    starts = _starts(path / "environment.json")
    return Run(path, config, rows, starts, read_status(path), read_predictions(path / PREDICTIONS))


def read_predictions(path: Path) -> Predictions | None:
    """What a network said of each sample; None where nobody kept it.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with _arrays(path) as file:
            order = np.argsort(file["index"], kind="stable")
            index, target, classes = (
                np.asarray(file[name])[order].astype(np.int64)
                for name in ("index", "target", "classes")
            )
            probabilities, loss = (
                np.asarray(file[name])[order].astype(np.float64)
                for name in ("probabilities", "loss")
            )
    except UNREADABLE as error:
        raise UserError(
            f"{path}: cannot be read ({error}); remove it, the report then leaves out what needs it"
        ) from error
    fits = (
        target.size > 0
        and target.shape == loss.shape == classes.shape[:1]
        and classes.ndim == 2
        and classes.shape == probabilities.shape
        and min(target.min(), classes.min()) >= 0
        and max(target.max(), classes.max()) < MAX_CLASSES
    )
    if not fits:
        raise UserError(f"{path}: its arrays do not belong together; remove it")
    return Predictions(index, target, classes, probabilities, loss)


def read_ledger(folder: Path) -> Ledger | None:
    """What a run kept of its training images; None where it kept nothing.

    Raises:
        UserError: a file of it is damaged.
    """
    loss: Floats
    right: Ints
    shown: Ints
    files = sorted(folder.glob("epoch_*.npz"))
    for path in files:
        try:
            with _arrays(path) as file:
                losses, correct = file["loss"].astype(np.float64), file["correct"]
            if path == files[0]:
                loss = np.zeros(len(losses))
                right, shown = np.zeros((2, len(losses)), np.int64)
            known = np.isfinite(losses)
            loss += np.where(known, losses, 0)
            right += known & correct
            shown += known
        except UNREADABLE as error:
            raise UserError(
                f"{path}: cannot be read ({error}); remove it, the report then leaves it out"
            ) from error
    return Ledger(share(loss, shown), right, shown) if files else None


@contextlib.contextmanager
def _arrays(path: Path) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
    """Of a file by numpy; raises one of :data:`UNREADABLE`."""
    with open(path, "rb", opener=regular_file) as file:
        check_archive(file)
        with np.load(file, allow_pickle=False) as arrays:
            yield arrays


def _epochs(rows: Iterable[dict[str, Any]], epochs: int) -> Iterator[dict[str, Any]]:
    """The rows of a log that are about a further epoch of the run."""
    following = 0
    for row in map(jsonl.numbers, rows):
        if "top_1" in row and following <= (epoch := jsonl.number(row, "epoch")) < epochs:
            yield row
            following = int(epoch) + 1


START: dict[str, Any] = {
    "time": str, "command": list, "host": str, "world_size": int, "device": str, "versions": dict,
}  # fmt: skip
"""What is told of a start."""


def _starts(path: Path) -> list[dict[str, Any]]:
    """What was recorded of each start, as far as it is what a run records."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return []
    return [
        {key: _plain(start[key]) for key, kind in START.items() if isinstance(start.get(key), kind)}
        for start in (found if isinstance(found, list) else [])
        if isinstance(start, dict)
    ]


def _plain(value: Any) -> Any:
    """Words and numbers of one line: part of what is told goes into a block for a shell."""
    if isinstance(value, dict):
        return {one_line(str(key)): one_line(str(inner)) for key, inner in value.items()}
    if isinstance(value, list):
        return [one_line(str(inner)) for inner in value]
    return min(max(value, 1), 1 << 31) if isinstance(value, int) else one_line(value)


def _dataset(path: str, predictions: Predictions | None) -> Beton | None:
    try:
        dataset = Beton(path)
    except UserError:
        return None
    if predictions is not None:
        index = predictions.index
        same = index[-1] < dataset.num_samples and index[0] >= 0
        if not same or (dataset.labels[index] != predictions.target).any():
            return None
    return dataset


def _recipe(path: Path) -> Recipe | None:
    try:
        config = settings.load([f"--config={path}"], needs_data=False)
        header = PUBLISHED.search(path.read_text("utf-8"))
    except (UserError, OSError, ValueError):
        return None
    found = zip(("top_1", "top_5"), header.groups() if header else (), strict=False)
    return Recipe(path, config, {key: float(value) for key, value in found if value})
