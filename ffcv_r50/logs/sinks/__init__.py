"""Where the numbers of a run go besides its own logs: sinks, which a recipe lists by name.

A sink follows ``log.jsonl`` and ``steps.jsonl``, on rank 0, in a thread of its own: whatever it does (a
full disk, no network, a server that is gone), training neither waits nor stops. What it could not take
it is given again, in the next try or by the next start of the run.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ffcv_r50.errors import UserError
from ffcv_r50.registry import Options, Registry


class Sink(Protocol):
    """Takes the rows of a run's logs, each kind in its order, from one thread."""

    def step(self, number: int, values: Mapping[str, Any]) -> None:
        """A step that was measured: see :class:`~ffcv_r50.logs.row.StepRow`.

        Args:
            number: from the run's start, from 0.
            values: numbers by name, and a fingerprint in letters.
        """
        ...

    def epoch(self, number: int, values: Mapping[str, Any]) -> None:
        """An epoch, trained and evaluated: see :class:`~ffcv_r50.logs.row.EpochRow`.

        Args:
            number: from 0.
            values: numbers by name; None where there is none.
        """
        ...

    def rewind(self, epochs: int, steps: int) -> tuple[int, int] | None:
        """So many epochs and steps (from the run's start) hold; later ones, if it was given any before,
        come again. The first call of each start of the run.

        Returns:
            None; or, from a sink that knows by itself how far it got and keeps what it has, with how
            many epochs and steps to go on.
        """
        ...

    def close(self) -> None:
        """Nothing comes any more."""
        ...


class SinkOptions(Options):
    """The options of a sink."""

    def check(self) -> None:
        """See that the sink can work here, before training.

        Raises:
            UserError: it cannot.
        """

    def build(self, folder: Path) -> Sink:
        """The sink itself.

        Args:
            folder: of the run.
        """
        raise NotImplementedError


SINKS: Registry[SinkOptions] = Registry("log sink")


def needs_package(package: str, extra: str) -> None:
    """See that a package is installed.

    Args:
        package: as it is imported.
        extra: of this toolkit, which brings it.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"logging.sinks: {extra} needs the package {package}, which is not installed; "
            f"pip install 'ffcv_r50[{extra}]'"
        )


from ffcv_r50.logs.sinks import tensorboard, wandb  # noqa: E402, F401  # register themselves
