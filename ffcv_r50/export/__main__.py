"""Export a trained network to a form that others load, and see that it computes the same there.

::

    python -m ffcv_r50.export RUN|WEIGHTS --to safetensors|torchvision|onnx|timm -o FOLDER
        [--weights ema] [--data.val_dataset=FILE] [--section.key=value ...]

RUN is a run's folder, WEIGHTS a file in one, or any other with ``--config=RECIPE``. The export is
loaded by the other side and evaluated on the whole validation file, in float32 on the CPU; only where
its logits and its top-1 are the network's does it appear in FOLDER.
"""

import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from ffcv_r50 import saved
from ffcv_r50.config import command_line
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import FINISHED, UserError, exit_with
from ffcv_r50.export import described, verify
from ffcv_r50.export.formats import FORMATS, require
from ffcv_r50.registry import Options
from ffcv_r50.training.evaluation import how


class Asked(Options):
    """What is exported; every other word is a setting."""

    to: Literal["safetensors", "torchvision", "onnx", "timm"]
    """The format."""
    output: str
    """The folder for the files; made where it is not there. `-o` is short for it."""
    weights: str | None = None
    """Of a run: `network`, or the name of one of its averages; null is what its `weights.pt` is."""


def main() -> None:
    """Export what the command line names; exit as :func:`errors.exit_with` says."""
    exit_with(lambda: export(sys.argv[1:]))


def export(argv: Sequence[str]) -> int:
    """Write a network in another form, verified.

    Args:
        argv: see the module's text.

    Raises:
        UserError: no network, no validation set, a network that the format cannot express, a missing
            package, or a fault in an option.
        RunFault: the export computes something else.
    """
    named, asked, words = command_line.with_names(Asked, argv or ["--help"], __doc__ or "", most=1)
    if not named:
        raise UserError("command line: no run or weights; write RUN before the options")
    form, folder = FORMATS[asked.to], Path(asked.output)
    require(asked.to, form.packages)
    found = saved.find(Path(named[0]), asked.weights, words, torch.device("cpu"))
    config = found.config
    if not config.data.val_dataset:
        raise UserError(
            "data.val_dataset is missing: an export is verified on it; pass --data.val_dataset=FILE"
        )
    val_set = Beton(config.data.val_dataset)
    saved.check_classes(found.network, val_set, f"{found.file}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as name:
            temporary = Path(name)
            described.write(described.describe(found), temporary)
            form.write(found, temporary)
            result = verify.verify(config, found.network, form.load(temporary), val_set)
            written = sorted(path.name for path in temporary.iterdir())
            for file in written:
                os.replace(temporary / file, folder / file)
    except OSError as error:
        raise UserError(
            f"--output={folder}: cannot be written ({error.strerror or error}); choose another"
        ) from error
    metrics, validation = result.metrics, config.validation
    print(f"{config.model.arch} ({found.file}) -> {folder}: {', '.join(written)}")
    print(
        f"verified by {form.runtime} {importlib.metadata.version(form.runtime)} on all "
        f"{metrics.count:,} validation images ({how(validation.resolution, validation.tta)}): logits "
        f"differ by at most {result.difference:.2g} (allowed {verify.TOLERANCE * result.largest:.2g}), "
        f"top-1 {metrics.top_1:.3f} % as the network's"
    )
    if (logged := saved.logged_top_1(found)) is not None:
        print(f"the run's log says {logged:.3f} %")
    return FINISHED


if __name__ == "__main__":
    main()
