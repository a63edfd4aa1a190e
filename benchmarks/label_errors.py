"""Does the ledger of training images find labels that are wrong? Plant some and look.

    python -m benchmarks.label_errors --config=rcp/digits.yaml --train_dataset=datasets/digits/train.beton
        --val_dataset=datasets/digits/val.beton --folder=runs/label_errors [--share=0.05] [--seed=0]

Copies the training file with another class for a share of its labels, chosen at random, trains on it with
``logging.samples``, and ranks the training images by their mean loss, as the report does. Of as many
images as were planted, the precision is the share that was (which is then the recall, too); the other
rows go less and further down the list.
"""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from benchmarks.beton_parts import parts
from ffcv_r50.config import command_line
from ffcv_r50.data.beton import TYPE_IMAGE, TYPE_INT, Beton
from ffcv_r50.errors import UserError, exit_with
from ffcv_r50.registry import Options, Range
from ffcv_r50.report.folder import read_ledger

TRAIN = Path(__file__).resolve().parents[1] / "train_imagenet.py"
DEPTHS = (0.5, 1.0, 2.0)
"""How far down the list, in numbers of planted errors."""


class Planted(Options):
    """What is planted, and where."""

    config: str
    """The recipe."""
    train_dataset: str
    """The `.beton` file to train on; of our writer, or with no other fields."""
    val_dataset: str
    """The `.beton` file to evaluate on."""
    folder: str
    """For the changed file and the run."""
    share: Annotated[float, Range(above=0, at_most=0.5)] = 0.05
    """Of the labels."""
    seed: Annotated[int, Range(at_least=0)] = 0
    """Of the choice."""


class Found(NamedTuple):
    """Of the images with the highest losses."""

    looked_at: int
    precision: float
    recall: float


def plant(source: Path, target: Path, share: float, seed: int) -> npt.NDArray[np.int64]:
    """Copy a dataset with wrong labels; returns which samples have them.

    Raises:
        UserError: it has other fields than an image and a label.
    """
    dataset = Beton(source)
    content = bytearray(source.read_bytes())
    header, fields, metadata, _ = parts(content)
    if header["num_fields"] != 2 or fields["type_id"].tolist() != [TYPE_IMAGE, TYPE_INT]:
        raise UserError(f"{source}: has other fields than an image and a label; write it again")
    rng = np.random.default_rng(seed)
    count = max(1, round(share * dataset.num_samples))
    wrong = np.sort(rng.choice(dataset.num_samples, count, replace=False))
    shift = rng.integers(1, dataset.num_classes, count)
    metadata["f1"][wrong] = (dataset.labels[wrong] + shift) % dataset.num_classes
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return wrong.astype(np.int64)


def rank(loss: npt.NDArray[np.float64], wrong: npt.NDArray[np.int64]) -> list[Found]:
    """How many of the planted are among those with the highest losses.

    Args:
        loss: [samples] mean over the epochs.
        wrong: samples whose labels are.
    """
    order = np.argsort(-np.nan_to_num(loss, nan=-1.0), kind="stable")
    found = []
    for depth in DEPTHS:
        looked_at = max(1, round(depth * len(wrong)))
        hits = int(np.isin(order[:looked_at], wrong).sum())
        found.append(Found(looked_at, hits / looked_at, hits / len(wrong)))
    return found


def main() -> None:
    """Plant, train, look."""
    options = command_line.read(Planted, sys.argv[1:], __doc__ or "")
    folder = Path(options.folder)
    train = folder / "train.beton"
    wrong = plant(Path(options.train_dataset), train, options.share, options.seed)
    print(f"{len(wrong)} of {Beton(train).num_samples:,} labels are wrong", flush=True)
    words = [f"--config={options.config}", f"--data.train_dataset={train}", "--logging.samples=1"]
    words += [f"--data.val_dataset={options.val_dataset}", f"--logging.folder={folder / 'run'}"]
    if subprocess.run([sys.executable, str(TRAIN), *words]).returncode:
        raise UserError("the run failed; what it says is above")
    ledger = read_ledger(folder / "run" / "ledger")
    assert ledger is not None, "logging.samples asks for it"
    table = Table("images looked at", "precision", "recall", box=None)
    for row in rank(ledger.loss, wrong):
        table.add_row(str(row.looked_at), f"{row.precision:.1%}", f"{row.recall:.1%}")
    Console().print(table)


if __name__ == "__main__":
    exit_with(main)
