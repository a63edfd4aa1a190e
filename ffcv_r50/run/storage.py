"""What a run keeps beyond its processes: on rank 0 in its folder, on the other ranks nothing.

Both have the same calls, so that the training loop reads the same on every rank.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ffcv_r50.config.settings import Config
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import UserError
from ffcv_r50.files import Arrays, write_arrays
from ffcv_r50.logs import jsonl
from ffcv_r50.run import checkpoint, compatibility, run_folder, versions

State = dict[str, Any]
"""Of a run, see :mod:`ffcv_r50.run.checkpoint`; empty where there is none."""
Say = Callable[[str], None]


class Storage:
    """Of a rank other than 0: nothing is written and nothing found."""

    def find(self, *, restarted: bool) -> State:
        """The state to continue from.

        Args:
            restarted: whether torchrun started this run again by itself.

        Raises:
            UserError: it belongs to other settings or datasets, or cannot be read, or nothing is
                left to do.
        """
        return {}

    def begin(self, config: Config, world_size: int) -> None:
        """The run is under way: from here on the folder is written to."""

    def save(self, state: State, copies: Sequence[str] = ()) -> None:
        """Have the state written while training goes on, under further names too.

        Args:
            state: of the training; settings, datasets and versions are added to it.
            copies: the further names.
        """

    def finish_saving(self) -> bool:
        """Wait for what was given to :meth:`save`; returns whether it is written."""
        return True

    def newest(self) -> State:
        """The newest state that was saved."""
        return {}

    def write_weights(self, networks: Mapping[str, nn.Module]) -> None:
        """Of the finished network and its averages, by name."""

    def write_arrays(self, names: Sequence[str], arrays: Arrays) -> None:
        """The same arrays under each of the names, as numpy's ``.npz``."""

    def last_row(self) -> dict[str, Any]:
        """The newest row of the log."""
        return {}

    def set_status(self, state: str, code: int | None = None, reason: str = "") -> None:
        """What :meth:`~ffcv_r50.run.run_folder.RunFolder.set_status` records."""

    def stopped_in_this_launch(self) -> bool:
        """Whether torchrun's restart is its answer to a stop that was asked for."""
        return False

    def release(self) -> None:
        """Let others use the folder."""


class FolderStorage(run_folder.RunFolder, Storage):
    """Of rank 0, in the folder of the run.

    Args:
        config: of this start.
        train_set, val_set: of this start.
        say, warn: are given lines for the user.

    Raises:
        UserError: the folder cannot be made or written, or a live run holds it.
    """

    def __init__(
        self, config: Config, train_set: Beton, val_set: Beton, say: Say, warn: Say
    ) -> None:
        super().__init__(config.logging.folder)
        self._config = config
        self._datasets = compatibility.identities(train_set, val_set)
        self._say = say
        self._warn = warn
        self._saver = checkpoint.Saver(
            self.checkpoints, 60 * config.checkpoint.give_up_minutes, warn
        )

    def find(self, *, restarted: bool) -> State:
        """See :meth:`Storage.find`."""
        config, source, where = self._config, self._config.resume.source, str(self.path)
        named = source not in ("auto", "none")
        if source == "none" and not restarted:
            self.put_aside()
        for change in self.changes(config):
            self._say(f"note: {change}, as resume.allow permits")
        found, warnings = checkpoint.newest(self.checkpoints)
        for warning in warnings:
            self._warn(warning)
        if found:
            compatibility.check_state(where, found)
        if found and named:
            self._say(f"note: {self.path} has a state of its own; {source} is not read")
        elif found is None and self.has_results():
            self._warn(
                f"{self.path}: has a run without a state to continue from; its log is kept in "
                f"{self.put_aside()}"
            )
        if found is None and named:
            found, where = checkpoint.load_state(Path(source)), source
            compatibility.check_state(source, found)
            for change in compatibility.changed_settings(source, found["config"], config):
                self._say(f"note: {change}, as resume.allow permits")
            if found["progress"]["epoch"] >= config.training.epochs:
                raise UserError(
                    f"--resume={source}: all {config.training.epochs} epochs of that run are done; "
                    "ask for more with --training.epochs, a schedule for them, and --resume.allow"
                )
        if found:
            for note in compatibility.notes(where, found, config, self._datasets):
                self._say(f"note: {note}")
        return found or {}

    def save(self, state: State, copies: Sequence[str] = ()) -> None:
        """See :meth:`Storage.save`."""
        origin = {
            "config": self._config.to_yaml(),
            "datasets": self._datasets,
            "versions": versions.current(),
        }
        self._saver.save(state | origin, copies=copies)

    def finish_saving(self) -> bool:
        """See :meth:`Storage.finish_saving`."""
        return self._saver.finish()

    def newest(self) -> State:
        """See :meth:`Storage.newest`."""
        self._saver.finish()
        return checkpoint.newest(self.checkpoints)[0] or {}

    def write_weights(self, networks: Mapping[str, nn.Module]) -> None:
        """See :meth:`Storage.write_weights`."""
        self._saver.finish()
        chosen = self._config.checkpoint.weights
        for name, network in networks.items():
            path = self.path / f"weights_{name}.pt"
            checkpoint.write_weights(self.weights if name == chosen else path, network.state_dict())

    def write_arrays(self, names: Sequence[str], arrays: Arrays) -> None:
        """See :meth:`Storage.write_arrays`; where they cannot be written, training goes on."""
        for name in names:
            try:
                write_arrays(self.path / name, arrays)
            except OSError as error:
                self._warn(
                    f"{self.path / name}: cannot be written ({error.strerror}); make room there. "
                    "Training goes on"
                )

    def last_row(self) -> dict[str, Any]:
        """See :meth:`Storage.last_row`."""
        return jsonl.last_row(self.log)
