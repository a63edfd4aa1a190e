"""What the state of a run is; saved whole or not at all, verified when loaded.

A checkpoint is what ``torch.save`` writes: a zip archive with a CRC-32 for each member, which is
checked before anything is believed. It holds tensors and plain Python values only and is read with
``weights_only=True``: loading one executes nothing.
"""

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from ffcv_r50.errors import UserError
from ffcv_r50.files import atomic_write

LAST = "last.pt"
PREVIOUS = "previous.pt"
BEST = "best.pt"


class DamagedCheckpoint(Exception):
    """The file is not a whole checkpoint: half-written, truncated or altered."""


def save(folder: Path, state: dict[str, Any], *, best: bool) -> None:
    """Write ``state`` as the newest checkpoint of ``folder`` and keep the one before it.

    At every moment a kill leaves at least one whole checkpoint under :data:`LAST` or
    :data:`PREVIOUS` (once there has been one).

    Args:
        folder: exists.
        state: tensors and plain values.
        best: this is also the best checkpoint so far.

    Raises:
        OSError: the disk is full or the folder not writable; older checkpoints are untouched.
    """
    last = folder / LAST
    with atomic_write(last) as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
        if last.exists():
            os.replace(last, folder / PREVIOUS)
    if best:
        with atomic_write(folder / BEST) as file, open(last, "rb") as source:
            shutil.copyfileobj(source, file)


def load(path: Path) -> dict[str, Any]:
    """Read and verify one checkpoint, onto the CPU.

    Raises:
        DamagedCheckpoint: it is not whole.
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (member := archive.testzip()) is not None:
                raise DamagedCheckpoint(f"{path}: the checksum of {member} is wrong")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except DamagedCheckpoint:
        raise
    except Exception as error:  # zipfile and torch raise many kinds on damaged input
        reason = str(error).partition("\n")[0][:100]
        raise DamagedCheckpoint(f"{path}: not a whole checkpoint ({reason})") from error
    return state


def newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest whole checkpoint of a run folder.

    Returns:
        The state, or None where there is none to continue from; and a warning for each damaged
        file that was passed over.

    Raises:
        UserError: there are checkpoints, but every one is damaged.
    """
    warnings: list[str] = []
    for name in (LAST, PREVIOUS):
        try:
            return load(folder / name), warnings
        except FileNotFoundError:
            continue
        except DamagedCheckpoint as error:
            warnings.append(f"{error}; passed over")
    if warnings:
        raise UserError(
            f"{folder}: every checkpoint is damaged ({warnings[0]}); choose another logging.folder, "
            "or remove this one to start anew"
        )
    return None, []


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The network's weights from a checkpoint of ours or from a plain state dict.

    Raises:
        UserError: there is no such file, or it is neither.
    """
    try:
        state = load(path)
    except OSError as error:
        raise UserError(f"--checkpoint={path}: cannot be read ({error.strerror})") from error
    except DamagedCheckpoint as error:
        raise UserError(f"--checkpoint={error}") from error
    if isinstance(state, dict) and "learner" in state:
        state = state["learner"]["model"]
    weights = state if isinstance(state, dict) else None
    if not weights or not all(torch.is_tensor(tensor) for tensor in weights.values()):
        raise UserError(f"--checkpoint={path}: holds no state dict of a network")
    return weights
