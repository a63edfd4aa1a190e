"""All that a run writes as it trains: its own logs, tables made of them, and the sinks that follow.

::

    log.jsonl       a row an epoch          log.csv, log.md    the same as tables
    steps.jsonl     a row a step            sinks/             how far each sink got
    ledger/         a file an epoch: each training image, where it is asked for
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from ffcv_r50.files import Arrays, write_arrays
from ffcv_r50.logs import jsonl, tables
from ffcv_r50.logs.jsonl import EpochLog, StepLog
from ffcv_r50.logs.row import EpochRow, StepRow
from ffcv_r50.logs.sinks import Sink
from ffcv_r50.logs.sinks.follower import Follower


class Logs:
    """Of a rank other than 0: nothing is written."""

    writes = False
    """Whether rows go anywhere."""

    def step(self, row: StepRow) -> None:
        """A step is done."""

    def epoch(self, row: EpochRow) -> None:
        """An epoch is trained and evaluated."""

    def ledger(self, epoch: int, arrays: Arrays) -> None:
        """How each training image fared in an epoch, see :mod:`ffcv_r50.logs.ledger`."""

    def rewind(self, epochs: int, steps: int) -> None:
        """The run begins, or continues, after so many epochs and (from its start) so many steps: what
        came later is forgotten.
        """

    def sync(self) -> None:
        """What there is of steps is on the disk."""

    def close(self) -> None:
        """Nothing comes any more; what is not written is tried once more."""


class FolderLogs(Logs):
    """Of rank 0, in the folder of the run. Where something cannot be written it says so once, goes on,
    and writes it later.

    Args:
        folder: of the run.
        sinks: by their names.
        warn: is given lines for the user.
    """

    writes = True

    def __init__(
        self, folder: Path, sinks: Mapping[str, Sink], warn: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._steps = StepLog(folder / "steps.jsonl", warn)
        self._epochs = EpochLog(folder / "log.jsonl", warn)
        self._sinks = [Follower(name, sink, folder, warn) for name, sink in sinks.items()]
        self._warn = warn
        self._warned = False

    def step(self, row: StepRow) -> None:
        """See :class:`Logs`."""
        self._steps.step(row)
        if row.measured:
            self._notify()

    def epoch(self, row: EpochRow) -> None:
        """See :class:`Logs`."""
        self._steps.flush()
        self._epochs.epoch(row)
        self._write_tables()
        self._notify()

    def ledger(self, epoch: int, arrays: Arrays) -> None:
        """See :class:`Logs`; an epoch's that cannot be written is lost."""
        path = self._folder / "ledger" / f"epoch_{epoch + 1}.npz"
        try:
            path.parent.mkdir(exist_ok=True)
            write_arrays(path, arrays)
        except OSError as error:
            self._warn_of(path, error)

    def rewind(self, epochs: int, steps: int) -> None:
        """See :class:`Logs`."""
        self._steps.rewind(steps)
        self._epochs.rewind(epochs)
        self._write_tables()
        for sink in self._sinks:
            sink.rewind(epochs, steps)

    def sync(self) -> None:
        """See :class:`Logs`."""
        self._steps.flush(durably=True)

    def close(self) -> None:
        """See :class:`Logs`."""
        self._steps.flush()
        self._epochs.flush()
        for sink in self._sinks:
            sink.close()

    def _notify(self) -> None:
        for sink in self._sinks:
            sink.notify()

    def _write_tables(self) -> None:
        try:
            tables.write(self._epochs.path)
        except OSError as error:
            self._warn_of(self._epochs.path.with_suffix(".csv"), error)

    def _warn_of(self, path: Path, error: OSError) -> None:
        """Say once that tables or ledgers cannot be written."""
        if not self._warned:
            self._warned = True
            self._warn(jsonl.unwritable(path, error))
