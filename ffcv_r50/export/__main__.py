"""Export a trained network to a form that others load, and see that it computes the same there.

::

    python -m ffcv_r50.export RUN|WEIGHTS -o FOLDER
        --to safetensors|torchvision|timm|onnx|torch_export|hub
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
from torch import nn

from ffcv_r50 import saved
from ffcv_r50.config import command_line
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import FINISHED, UserError, exit_with
from ffcv_r50.export import card, described, space, verify
from ffcv_r50.export.formats import FORMATS, for_hub, require
from ffcv_r50.export.of_bytes import OfBytes, Restored
from ffcv_r50.registry import Options
from ffcv_r50.saved import Saved
from ffcv_r50.training.evaluation import how


class Asked(Options):
    """What is exported; every other word is a setting."""

    to: Literal["safetensors", "torchvision", "onnx", "timm", "torch_export", "hub"]
    """The format; `hub` is a folder to upload to the Hugging Face hub, with a model card, and in it the
    folder `space`, for a Space: a page to try the network on."""
    output: str
    """The folder for the files; made where it is not there. `-o` is short for it."""
    weights: str | None = None
    """Of a run: `network`, or the name of one of its averages; null is what its `weights.pt` is."""
    normalise: bool = False
    """With `onnx` and `torch_export`: have the exported network take uint8 [n, height, width, 3] and
    normalise it."""
    license: str = "unknown"
    """With `hub`: what its pages say, by the hub's names, such as `apache-2.0`."""


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
    hub, folder = asked.to == "hub", Path(asked.output)
    form = FORMATS["timm" if hub else asked.to]
    require(asked.to, [*form.packages, *(space.FORMAT.packages if hub else [])])
    if asked.normalise and not form.bytes_in:
        raise UserError(
            f"command line: --normalise=1: has no effect with --to={asked.to}; use --to=onnx"
        )
    if asked.license != "unknown" and not hub:
        raise UserError(f"command line: --license: has no effect with --to={asked.to}")
    found = saved.find(Path(named[0]), asked.weights, words, torch.device("cpu"))
    config, network = found.config, found.network
    form = for_hub(found) if hub else form
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
            written_as = found
            if asked.normalise:
                written_as = found._replace(network=OfBytes(network, config.data.statistics))
            described.write(described.describe(written_as), temporary)
            form.write(written_as, temporary)
            theirs = form.load(temporary)
            if asked.normalise:
                theirs = Restored(theirs, config.data.statistics)
            exports = {form.runtime: theirs}
            if hub and (page := _space(found, asked.license, temporary / space.FOLDER)):
                exports[space.FORMAT.runtime] = page
            results = verify.verify(config, network, list(exports.values()), val_set)
            if hub:
                card.write(found, results[0], asked.license, temporary)
            files = (path for path in temporary.rglob("*") if path.is_file())
            written = sorted(str(path.relative_to(temporary)) for path in files)
            for file in written:
                (folder / file).parent.mkdir(exist_ok=True)
                os.replace(temporary / file, folder / file)
    except OSError as error:
        raise UserError(
            f"--output={folder}: cannot be written ({error.strerror or error}); choose another"
        ) from error
    validation = config.validation
    print(f"{config.model.arch} ({found.file}) -> {folder}: {', '.join(written)}")
    for runtime, (metrics, difference, largest) in zip(exports, results, strict=True):
        print(
            f"verified by {runtime} {importlib.metadata.version(runtime)} on all "
            f"{metrics.count:,} validation images ({how(validation.resolution, validation.tta)}): "
            f"logits differ by at most {difference:.2g} (allowed {verify.TOLERANCE * largest:.2g}), "
            f"top-1 {metrics.top_1:.3f} % as the network's"
        )
    if (logged := saved.logged_top_1(found)) is not None:
        print(f"the run's log says {logged:.3f} %")
    return FINISHED


def _space(found: Saved, license_name: str, folder: Path) -> nn.Module | None:
    """Write the folder for a Space; its network, or None, which is said, where that cannot be ONNX."""
    try:
        space.write(found, license_name, folder)
    except UserError as error:
        print(f"{space.FOLDER}/ is left out: {error}", file=sys.stderr)
        return None
    return space.load(found, folder)


if __name__ == "__main__":
    main()
