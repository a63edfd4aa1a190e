"""TensorBoard, by its own writer: ``tensorboard --logdir RUN/tensorboard``."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ffcv_r50.logs.sinks import SINKS, Sink, SinkOptions, needs_package

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@SINKS.register("tensorboard")
class TensorBoardOptions(SinkOptions):
    """Event files for TensorBoard, in the folder of the run."""

    def check(self) -> None:
        """See :meth:`~ffcv_r50.logs.sinks.SinkOptions.check`."""
        needs_package("tensorboard", "tensorboard")

    def build(self, folder: Path) -> Sink:
        """See :class:`TensorBoard`."""
        return TensorBoard(folder / "tensorboard")


class TensorBoard:
    """Scalars under the names of the logs: those of steps over the step, those of epochs over the epoch.

    They are two runs to TensorBoard, ``steps`` and ``epochs``: a file that continues others says from
    which number on it takes their place, and each kind has numbers of its own.

    Args:
        folder: for the event files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def step(self, number: int, values: Mapping[str, Any]) -> None:
        """A point of each curve of steps."""
        self._add("steps", number, values)

    def epoch(self, number: int, values: Mapping[str, Any]) -> None:
        """A point of each curve of epochs."""
        self._add("epochs", number, values)

    def rewind(self, epochs: int, steps: int) -> None:
        """Begin new files, from which on what earlier ones have of later steps and epochs is void."""
        self.close()
        self._open("epochs", epochs)
        self._open("steps", steps)

    def close(self) -> None:
        """Close the files."""
        while self._writers:
            self._writers.popitem()[1].close()

    def _open(self, kind: str, first: int) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter  # here: it takes a second

        self._writers[kind] = writer = SummaryWriter(str(self._folder / kind), purge_step=first)
        return writer

    def _add(self, kind: str, number: int, values: Mapping[str, Any]) -> None:
        writer = self._writers.get(kind) or self._open(kind, number)
        try:
            for name, value in values.items():
                if name not in ("step", "epoch") and isinstance(value, (int, float)):
                    writer.add_scalar(name, value, number)
            writer.flush()  # what is lost after a kill is not given again
        except Exception:
            # Its thread has ended with the first error: the next try begins a file of its own.
            with contextlib.suppress(Exception):
                self._writers.pop(kind).close()
            raise
