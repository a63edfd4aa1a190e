"""A run is a folder: its configuration, environment, log and checkpoints.

::

    config.yaml         every setting, resolved; alone it starts the same run
    environment.json    format, versions, devices and the command line, of each start
    log.jsonl           one line an epoch; log.csv, log.md: the same as tables
    steps.jsonl         one line a step
    ledger/             with logging.samples: each training image in each epoch
    sinks/              how far each sink got with them
    status.json         running, finished, stopped or lost (the same command continues), or failed
    checkpoints/        last.pt, previous.pt, best.pt: the state of the run
    weights.pt          the finished network: a plain state dict with torchvision's names
    weights_NAME.pt     the same of its averages
    predictions.npz     what that network made of each validation sample; after each epoch
    predictions_best.npz  the same of the best epoch
"""

import contextlib
import fcntl
import itertools
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ffcv_r50.config.settings import Config
from ffcv_r50.errors import UserError
from ffcv_r50.files import atomic_write, read_json, read_record, read_settings
from ffcv_r50.logs import jsonl
from ffcv_r50.run import compatibility, versions
from ffcv_r50.run.status import LOCK, STATUS

LOCK_SECONDS = 5.0
RESULTS = (
    "log.*",
    "steps.jsonl",
    "config.yaml",
    "weights*.pt",
    "predictions*.npz",
    "report.html",
    "ledger",
    "sinks",
    "tensorboard",
    "wandb",
)
"""What a run leaves besides its checkpoints."""
FOLDERS = ("checkpoints", "ledger", "sinks", "tensorboard", "wandb")
CHANGED = (LOCK, "log.jsonl", "steps.jsonl", "checkpoints")
"""What is not replaced as a whole: being allowed to write the folder is not enough."""


class RunFolder:
    """The folder of one run, held by this process alone until :meth:`release`.

    Args:
        path: made if it is not there.

    Raises:
        UserError: it cannot be made or written, or a live run holds it.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.log = self.path / "log.jsonl"
        self.weights = self.path / "weights.pt"
        self._check()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            # Held, not read; unbuffered, or a full disk would show again when it is closed.
            self._lock = open(self.path / LOCK, "ab+", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise UserError(
                f"logging.folder={path}: cannot be made or written ({error.strerror}); choose another"
            ) from error
        try:
            self._hold()
        except UserError:
            self._lock.close()
            raise

    def _check(self) -> None:
        """See that what is written here lies here and may be written, and that no pipe is waited for.

        A folder from somebody else may have links in it that lead to any file of its new owner.

        Raises:
            UserError: something does not, or may not; named.
        """
        for name in (LOCK, STATUS, "environment.json", "checkpoints", *RESULTS, "sinks/*"):
            for path in self.path.glob(name):
                if path.is_symlink():
                    what = (
                        f"is a link to {os.readlink(path)}; a run writes into its own folder only"
                    )
                elif path.name in FOLDERS:
                    what = "" if path.is_dir() else "is no folder"
                else:
                    what = "" if path.is_file() else "is no file"
                if what:
                    raise UserError(f"{path}: {what}: remove it, or choose another logging.folder")
        for path in (self.path / name for name in CHANGED):
            if path.exists() and not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
                raise UserError(
                    f"{path}: cannot be read and written by this user; continue the run as its owner, "
                    "or choose another logging.folder"
                )

    def _hold(self) -> None:
        """Take the lock; the system gives it back when this process ends, however it ends."""
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self._lock.seek(0)
                    holder = self._lock.read(200).decode(errors="replace").strip()
                    raise UserError(
                        f"{self.path}: in use by another run ({holder}); wait for "
                        "it, stop it, or choose another logging.folder"
                    ) from None
                time.sleep(0.1)  # a killed run may still be on its way out
            except OSError:  # a file system without locks: nothing to hold
                return
            else:
                with contextlib.suppress(OSError):  # who holds it is told to others only
                    self._lock.truncate(0)
                    self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                return

    def release(self) -> None:
        """Let others use the folder."""
        self._lock.close()

    def changes(self, config: Config) -> list[str]:
        """What differs from the saved configuration, as ``resume.allow`` permits.

        Raises:
            UserError: something else differs, named; or what was saved cannot be read, or comes from
                a later version.
        """
        saved = self.path / "config.yaml"
        if not saved.exists():
            return []
        last = self._last_start()
        versions.check_format(str(self.path), last.get("format", 0), last.get("versions", {}))
        try:
            text = read_settings(saved)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{saved}: cannot be read ({error}); restore it or remove it"
            ) from error
        return compatibility.changed_settings(str(self.path), text, config)

    def begin(self, config: Config, world_size: int) -> None:
        """Write the configuration, append this start to the environment file: the run is under way.

        What killed processes left half-written is removed.

        Raises:
            UserError: the folder cannot be written.
        """
        ours = ["environment.json", STATUS, *RESULTS]
        half = [self.path.glob(f".{name}.[0-9]*.tmp") for name in ours]
        half.append(self.checkpoints.glob(".*.pt.[0-9]*.tmp"))
        try:
            for path in itertools.chain(*half):
                path.unlink()
            with atomic_write(self.path / "config.yaml") as file:
                file.write(config.to_yaml().encode())
            self._append_start(world_size)
        except OSError as error:
            raise UserError(
                f"logging.folder={self.path}: cannot be written ({error.strerror}); make room "
                "there, or choose another"
            ) from error
        self.set_status("running")

    def _last_start(self) -> dict[str, Any]:
        """What :meth:`begin` recorded last; empty where that cannot be read."""
        try:
            start = read_json(self.path / "environment.json")[-1]
        except (OSError, ValueError, LookupError, TypeError):
            return {}
        known = {"format": int, "versions": dict}
        if not isinstance(start, dict) or not all(
            isinstance(start.get(key, kind()), kind) for key, kind in known.items()
        ):
            return {}
        return start

    def _append_start(self, world_size: int) -> None:
        environment = self.path / "environment.json"
        starts = []
        if environment.exists():
            try:
                starts = read_json(environment)
                if not isinstance(starts, list):
                    raise ValueError("is no list")
            except ValueError:  # nothing continues from it, so it stops nobody
                environment.rename(self.path / "environment.damaged.json")
        starts.append(
            {
                "time": _now(),
                "command": sys.argv,
                "host": socket.gethostname(),
                "world_size": world_size,
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
                "format": versions.FORMAT,
                "versions": versions.current(),
            }
        )
        with atomic_write(environment) as file:
            file.write(json.dumps(starts, indent=1).encode())

    def set_status(self, state: str, code: int | None = None, reason: str = "") -> None:
        """Record what the run is doing, for schedulers and people: torchrun hides exit codes.

        Args:
            state: ``running``, ``finished``, ``stopped`` (as asked: the same command continues),
                ``lost`` (processes died or hung: it may continue) or ``failed`` (the same command
                would fail again).
            code: the exit code, once there is one.
            reason: one line.
        """
        row = {
            "state": state,
            "exit_code": code,
            "reason": reason,
            "time": _now(),
            "launch": _launch(),
        }
        # A full disk must neither hide why a run ends nor change its exit code.
        with contextlib.suppress(OSError), atomic_write(self.path / STATUS) as file:
            file.write((json.dumps(row) + "\n").encode())

    def status(self) -> dict[str, Any]:
        """What :meth:`set_status` recorded last; empty before the first time."""
        return read_record(self.path / STATUS)

    def stopped_in_this_launch(self) -> bool:
        """Whether a start after torchrun's first is its answer to a stop that was asked for.

        ``torchrun --max-restarts`` takes exit code 75 for a fault and starts the group again, as
        large as it was; when machines came or went it stops the group itself, by the same signals,
        and starts it in another size.
        """
        status = self.status()
        return (status.get("state"), status.get("launch")) == ("stopped", _launch())

    def has_results(self) -> bool:
        """Whether a run got further here than its first checkpoint."""
        return self.weights.exists() or len(jsonl.read(self.log)) > 1

    def put_aside(self) -> Path | None:
        """Keep an earlier run's state, log and settings in a folder that nothing continues from.

        Returns:
            That folder; None where there was nothing to keep.
        """
        kept = [path for name in RESULTS for path in self.path.glob(name)]
        if any(self.checkpoints.iterdir()):
            kept.append(self.checkpoints)
        if not kept:
            return None
        aside = self.path / time.strftime("before-%Y%m%d-%H%M%S")
        aside.mkdir()
        for path in kept:
            path.rename(aside / path.name)
        self.checkpoints.mkdir(exist_ok=True)
        return aside


def _launch() -> str:
    """One call of torchrun: the same for what it starts again, in the same size."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    return f"{os.environ['TORCHELASTIC_RUN_ID']}, {os.environ.get('WORLD_SIZE')} processes"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
