"""A run is a folder: its configuration, environment, log and checkpoints.

::

    config.yaml         every setting, resolved; alone it starts the same run
    environment.json    versions, devices and the command line, of each start
    log.jsonl           one line an epoch
    checkpoints/        last.pt, previous.pt, best.pt: the state of the run
    weights.pt          the finished network: a plain state dict with torchvision's names
"""

import json
import os
import platform
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numba
import numpy
import torch
import torchvision
import yaml

import ffcv_r50
from ffcv_r50.config import Config
from ffcv_r50.errors import UserError
from ffcv_r50.files import atomic_write

# What may differ between two starts of one run: where things lie and how fast they are read.
FREE = (
    "data.train_dataset",
    "data.val_dataset",
    "data.num_workers",
    "logging.",
    "dist.",
    "checkpoint",
)


def versions() -> dict[str, str]:
    """Versions of everything that shapes a result."""
    return {
        "ffcv_r50": ffcv_r50.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a class of its own, which weights_only refuses
        "torchvision": str(torchvision.__version__),
        "numpy": numpy.__version__,
        "numba": numba.__version__,
        "cuda": torch.version.cuda or "",
        "cudnn": str(torch.backends.cudnn.version() or ""),
    }


class RunFolder:
    """The folder of one run.

    Args:
        path: made if it is not there.

    Raises:
        UserError: it cannot be made or written.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.log = self.path / "log.jsonl"
        self.weights = self.path / "weights.pt"
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"logging.folder={path}: cannot be made ({error.strerror}); choose another"
            ) from error
        if not os.access(self.path, os.W_OK):
            raise UserError(f"logging.folder={path}: not writable; choose another")

    def begin(self, config: Config, world_size: int) -> None:
        """Write the configuration and append this start to the environment file.

        Raises:
            UserError: the folder holds a run with another configuration; names what differs.
        """
        saved = self.path / "config.yaml"
        if saved.exists():
            self._check_same(saved, config)
        with atomic_write(saved) as file:
            file.write(config.to_yaml().encode())
        environment = self.path / "environment.json"
        starts = json.loads(environment.read_text()) if environment.exists() else []
        starts.append(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "command": sys.argv,
                "host": socket.gethostname(),
                "world_size": world_size,
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
                "versions": versions(),
            }
        )
        with atomic_write(environment) as file:
            file.write(json.dumps(starts, indent=1).encode())

    def _check_same(self, saved: Path, config: Config) -> None:
        before, now = (
            _flat(yaml.safe_load(text)) for text in (saved.read_text(), config.to_yaml())
        )
        differing = [
            f"{key} ({before.get(key)} -> {now.get(key)})"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not key.startswith(FREE)
        ]
        if differing:
            raise UserError(
                f"{self.path}: holds a run with other settings: {', '.join(differing)}; give the same "
                "settings to continue it, or another logging.folder"
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; a schedule's row stays whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and not name.startswith("schedule."):
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = value
    return flat
