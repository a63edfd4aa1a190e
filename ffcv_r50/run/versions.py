"""Which versions wrote a run: the format of its files, and what shapes its numbers.

Runs outlive versions. A run folder and each of its checkpoints carry the number of the format that
they are written in. Older formats are upgraded, step by step, as they are read; newer ones are
refused.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numba
import numpy
import torch

import ffcv_r50
from ffcv_r50.errors import UserError

State = dict[str, Any]

FORMAT = 1
"""Of the run folders and checkpoints that this version writes. It goes up with every change that an
older version would misread; a setting that is new is no such change. Format 0 carries no number: it
is what was written before the formats were counted."""


def _name_no_datasets(state: State) -> State:
    """0 -> 1: nobody knows which datasets a state of format 0 comes from."""
    return {**state, "datasets": {}}


UPGRADES: Sequence[Callable[[State], State]] = (_name_no_datasets,)
"""For each older format the step that makes a state of the next one of it."""


def current() -> dict[str, str]:
    """Versions of everything that shapes a result."""
    import torchvision  # 2 s, of which those that only compare runs have no use

    networks = [sys.modules["timm"]] if "timm" in sys.modules else []
    return ffcv_r50.versions(torch, torchvision, numpy, numba, *networks) | {
        "cuda": torch.version.cuda or "",
        "cudnn": str(torch.backends.cudnn.version() or ""),
    }


def changed(saved: Mapping[str, str]) -> str | None:
    """A line on the versions that are others now, or None where all are the same.

    Args:
        saved: what :func:`current` gave when the run was saved.
    """
    now = current()
    texts = [
        f"{name} {saved[name] or 'none'} -> {version or 'none'}"
        for name, version in now.items()
        if name in saved and saved[name] != version
    ]
    if not texts:
        return None
    return f"continued with other versions than it was saved with ({', '.join(texts)}); bits may differ"


def check_format(where: str, number: int, saved: Mapping[str, str]) -> None:
    """Refuse what a later version wrote in a format that this one does not know.

    Args:
        where: the folder or file, for the message.
        number: of its format.
        saved: the versions that wrote it.

    Raises:
        UserError: the format is newer than :data:`FORMAT`.
    """
    if number > FORMAT:
        raise UserError(
            f"{where}: was written by ffcv_r50 {saved.get('ffcv_r50', 'of a later version')} in "
            f"format {number}, ffcv_r50 {ffcv_r50.__version__} reads formats up to {FORMAT}; install "
            "that version or a later one"
        )


def upgraded(where: str, state: State) -> State:
    """A state as this version writes it, from one of any earlier format.

    Plain weights are returned as they are.

    Raises:
        UserError: see :func:`check_format`.
    """
    number = state.get("format", 0 if "learner" in state else None)
    if not isinstance(number, int):
        return state
    check_format(where, number, state.get("versions", {}))
    for upgrade in UPGRADES[number:]:
        state = upgrade(state)
    return {**state, "format": FORMAT}
