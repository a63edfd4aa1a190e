"""Networks that were trained, with what they need to be used: settings, classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ffcv_r50 import build, models
from ffcv_r50.config import settings
from ffcv_r50.config.settings import Config
from ffcv_r50.data.beton import Beton, Sidecar
from ffcv_r50.errors import UserError, nearest
from ffcv_r50.logs import jsonl
from ffcv_r50.models import pretrained, sizes
from ffcv_r50.run import checkpoint
from ffcv_r50.training.averages import NETWORK

ANY = 10
"""Classes of a network whose names alone count."""


class Saved(NamedTuple):
    """A trained network."""

    config: Config
    file: Path
    """That holds its weights."""
    name: str
    """``network``, or which of its averages."""
    network: nn.Module
    """In evaluation mode."""
    classes: list[str]
    """Names in label order; numbers where they are not known."""
    upright: bool
    """Whether its images were turned as their EXIF orientation says, or nobody knows."""


def load(config: Config, file: Path, device: torch.device, setting: str = "") -> nn.Module:
    """The network of a configuration with saved weights, as many classes as they have.

    Args:
        config: says which network.
        file: the weights, or a checkpoint.
        device: for the network.
        setting: what an error begins with; else ``--checkpoint=FILE``.

    Raises:
        UserError: the file cannot be read, or holds another network.
    """
    setting = setting or f"--checkpoint={file}"
    weights = checkpoint.load_weights(file, setting)
    if not config.model.blurpool and any(n.endswith(pretrained.BLUR_FILTER) for n in weights):
        raise UserError(f"{setting}: was trained with blurpool; pass --model.blurpool=true")
    weights = pretrained.plain_names(weights)
    if config.model.arch in models.AUXILIARY:  # torchvision's have layers for training only
        weights = {k: v for k, v in weights.items() if not k.lower().startswith("aux")}
    named = sizes.on_meta(num_classes=ANY, **config.model.network)
    head = weights.get(pretrained.head_names(named)[0])
    network = build.network(config, ANY if head is None else len(head), device)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{setting}: does not fit model.arch={config.model.arch}: {reason}"
        ) from error
    return network


def check_classes(network: nn.Module, val_set: Beton, setting: str) -> int:
    """See that a network can be evaluated on a dataset; returns how many classes it has.

    Raises:
        UserError: the dataset has more; begins with ``setting``.
    """
    count: int = models.classifier(network).weight.shape[0]
    if val_set.num_classes > count:
        raise UserError(f"{setting}: has {count} classes, {val_set.path} has {val_set.num_classes}")
    return count


def run_of(path: Path) -> Path | None:
    """The folder of the run that a path belongs to: itself, or a file of weights in one; None for neither."""
    return next((f for f in (path, *path.parents[:2]) if (f / "config.yaml").is_file()), None)


def find(
    path: Path, name: str | None, words: Mapping[str, Sequence[str]], device: torch.device
) -> Saved:
    """A finished run's network, or one of its averages; or the network that a file holds.

    Args:
        path: the run's folder, or a file of weights or a checkpoint. A file in a run's folder has the
            run's settings.
        name: ``network`` or the name of an average of a run; None for what its ``weights.pt`` is.
        words: further settings, see :func:`ffcv_r50.config.command_line.split`.
        device: for the network.

    Raises:
        UserError: there is nothing of the kind.
    """
    folder = run_of(path)
    given = dict(words)
    if folder is not None:
        given.setdefault("config", [str(folder / "config.yaml")])
    elif path.is_dir():
        raise UserError(f"{path}: is no run, it has no config.yaml; name a run's folder or a file")
    elif "config" not in given:
        raise UserError(
            f"{path}: weights without a run's settings; name the recipe: --config=rcp/rn50_16ep.yaml"
        )
    config = settings.resolve(given, needs_data=False)
    file, name = weights_of(path, name, config)
    network = load(config, file, device, f"{file}").eval()
    sidecar = _sidecar(config)
    count = models.classifier(network).weight.shape[0]
    known = sidecar is not None and len(sidecar.classes) == count
    classes = sidecar.names if sidecar and known else [str(number) for number in range(count)]
    upright = not known or bool(sidecar and sidecar.settings.get("exif_rotate"))
    return Saved(config, file, name, network, classes, upright)


def weights_of(path: Path, name: str | None, config: Config) -> tuple[Path, str]:
    """The file of weights that is meant, and what they are of.

    Args:
        path: as :func:`find` takes it.
        name: likewise.
        config: of the run.

    Raises:
        UserError: there is none.
    """
    default = config.checkpoint.weights
    if not path.is_dir():
        if name is not None:
            raise UserError(
                f"command line: --weights={name}: {path} is a file; name a run's folder"
            )
        stem = path.stem.removeprefix("weights").removeprefix("_")
        return path, stem if path.stem.startswith("weights_") else default
    there = {file.stem.removeprefix("weights_"): file for file in path.glob("weights_*.pt")}
    if (path / "weights.pt").is_file():
        there[default] = path / "weights.pt"
    if not there:
        raise UserError(
            f"{path}: has no weights.pt, the run has not finished; finish it, or name a checkpoint: "
            f"{path / 'checkpoints' / checkpoint.BEST}"
        )
    name = name or default
    if name not in there:
        near = nearest(name, there)
        hint = f"did you mean {near}?" if near else f"it has {', '.join(sorted(there))}"
        raise UserError(f"command line: --weights={name}: {path} has no such weights; {hint}")
    return there[name], name


def _sidecar(config: Config) -> Sidecar | None:
    """Of the validation set, else of the training set, where one of them is there."""
    files = (config.data.val_dataset, config.data.train_dataset)
    return next(filter(None, (Sidecar.read(file) for file in files if file)), None)


def logged_top_1(saved: Saved) -> float | None:
    """What the run's log says of the finished network, in %; None where it says nothing."""
    if not saved.file.name.startswith("weights"):
        return None
    key = "top_1" if saved.name == NETWORK else f"{saved.name}_top_1"
    return jsonl.last_row(saved.file.parent / "log.jsonl").get(key)
