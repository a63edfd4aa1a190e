"""What the state of a run is; saved whole or not at all, verified when loaded.

A checkpoint is what ``torch.save`` writes: a zip archive with a CRC-32 for each member, which is
checked before anything is believed. It holds tensors and plain Python values only and is read with
``weights_only=True``: loading one executes nothing. It carries the number of its format, see
:mod:`ffcv_r50.run.versions`.
"""

import argparse
import contextlib
import os
import pickle
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch

from ffcv_r50.errors import RunFault, UserError
from ffcv_r50.files import atomic_write, check_archive, regular_file
from ffcv_r50.run import versions

LAST = "last.pt"
PREVIOUS = "previous.pt"
BEST = "best.pt"
DAMAGED = "damaged.pt"


OLD = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
"""What a file of torch before 1.6 begins with."""


class DamagedCheckpoint(Exception):
    """The file is not a whole checkpoint: half-written, truncated or altered."""


def write(folder: Path, state: dict[str, Any], *, copies: Sequence[str] = ()) -> None:
    """Write ``state`` as the newest checkpoint of ``folder`` and keep the one before it.

    At every moment a kill leaves at least one whole checkpoint under :data:`LAST` or
    :data:`PREVIOUS` (once there has been one).

    Args:
        folder: exists.
        state: tensors and plain values.
        copies: further names for it, such as :data:`BEST`.

    Raises:
        OSError: the disk is full or the folder not writable; older checkpoints are untouched.
    """
    last = folder / LAST
    with atomic_write(last) as file:
        _torch_save({"format": versions.FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
        # Before the state itself: it says that they are there, so a kill must not come between.
        for name in copies:
            file.seek(0)
            with atomic_write(folder / name) as copy:
                shutil.copyfileobj(file, copy)
        if last.exists():
            os.replace(last, folder / PREVIOUS)


def write_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write a plain state dict.

    Raises:
        RunFault: the disk is full or the folder not writable.
    """
    try:
        with atomic_write(path) as file:
            _torch_save(weights, file)
    except OSError as error:
        raise RunFault(
            f"{path}: cannot be written ({error.strerror or error}); make room there, the same "
            "command writes it"
        ) from error


def _torch_save(content: dict[str, Any], file: BinaryIO) -> None:
    """``torch.save``, but a disk that is full is an OSError, not a RuntimeError about positions."""
    failed: list[OSError] = []

    def write(data: bytes) -> int:
        try:
            return file.write(data)
        except OSError as error:
            failed.append(error)
            raise

    try:
        torch.save(content, SimpleNamespace(write=write, flush=file.flush))
    except RuntimeError as error:
        raise (failed[0] if failed else error) from error


class Saver:
    """Writes checkpoints in a thread; the training loop waits only for a copy of the state.

    A checkpoint that cannot be written is a warning as long as an older one could be continued
    from, and an error once none could be written for ``give_up_seconds``.

    Args:
        folder: for the checkpoints; exists.
        give_up_seconds: see above.
        warn: is given each warning, in the thread that saves.
    """

    def __init__(self, folder: Path, give_up_seconds: float, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._give_up_seconds = give_up_seconds
        self._warn = warn
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._failing_since: float | None = None
        self._host = _HostCopy()

    def save(self, state: dict[str, Any], *, copies: Sequence[str] = ()) -> None:
        """Copy ``state`` and have it written; waits for an earlier one first.

        Raises:
            RunFault: nothing could be written for too long.
        """
        self.finish()
        copied = self._host.take(state)

        def work() -> None:
            try:
                self._host.wait()
                write(self._folder, copied, copies=copies)
            except Exception as error:  # whatever it is, finish() raises it where it is seen
                self._error = error

        self._thread = threading.Thread(target=work, name="checkpoint")
        self._thread.start()

    @property
    def writing(self) -> bool:
        """Whether what was given to :meth:`save` is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def finish(self) -> bool:
        """Wait until what was given to :meth:`save` is written, or has failed.

        Returns:
            Whether it is written.

        Raises:
            RunFault: nothing could be written for too long.
        """
        if self._thread is None:
            return True
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is None:
            self._failing_since = None
            return True
        if not isinstance(error, OSError):
            raise error
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        what = f"{self._folder}: the checkpoint could not be written ({error.strerror or error})"
        failing = now - self._failing_since
        if failing >= self._give_up_seconds:
            raise RunFault(f"{what}, nor could any for {failing / 60:.0f} minutes; make room there")
        self._warn(f"{what}; make room there. Training goes on")
        return False


class _HostCopy:
    """A copy of a state in host memory, whose buffers are used again by the next."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """Copy every tensor of ``state``. From a GPU the copying ends at :meth:`wait`, while the
        stream's later kernels, which change the tensors, come after it.
        """
        copied: dict[str, Any] = self._tree(state, "")
        if torch.cuda.is_available():
            self._copied = torch.cuda.Event()
            self._copied.record()
        return copied

    def wait(self) -> None:
        """Until the copy is whole."""
        if self._copied is not None:
            self._copied.synchronize()

    def _tree(self, value: Any, name: str) -> Any:
        if isinstance(value, torch.Tensor):
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
                buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
                self._buffers[name] = buffer
            return buffer.copy_(value, non_blocking=True)
        if isinstance(value, dict):
            return {key: self._tree(inner, f"{name}.{key}") for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._tree(inner, f"{name}.{i}") for i, inner in enumerate(value)]
        return value


def load(path: Path) -> dict[str, Any]:
    """Read and verify one checkpoint, onto the CPU, as this version would have written it.

    Raises:
        DamagedCheckpoint: it is not whole.
        OSError: it cannot be read.
        UserError: a later version wrote it, in a format that this one does not know.
    """
    try:
        with open(path, "rb", opener=regular_file) as file:
            if not _is_of_old(file):
                check_archive(file)
                with zipfile.ZipFile(file) as archive:
                    if (member := archive.testzip()) is not None:
                        raise DamagedCheckpoint(f"{path}: the checksum of {member} is wrong")
        # timm's and torchvision's scripts save their command line with the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except DamagedCheckpoint:
        raise
    except Exception as error:  # zipfile and torch raise many kinds on damaged input
        reason = str(error).partition("\n")[0][:100]
        raise DamagedCheckpoint(f"{path}: not a whole checkpoint ({reason})") from error
    if not isinstance(state, dict):
        return state
    if not isinstance(state.get("format", 0), int) or not isinstance(
        state.get("versions", {}), dict
    ):
        raise DamagedCheckpoint(f"{path}: not a checkpoint (its format is none)")
    return versions.upgraded(str(path), state)


def _is_of_old(file: BinaryIO) -> bool:
    """Whether it begins as what torch wrote before 1.6: no archive, without checksums.

    Some of torchvision's and timm's weights are from then; nothing of ours is. The file is left at its
    beginning.
    """
    begin = file.read(len(OLD))
    file.seek(0)
    return begin == OLD


def newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest whole checkpoint of a run folder.

    A damaged one is put aside as :data:`DAMAGED`, lest the next save keep it as the one before.

    Returns:
        The state, or None where there is none to continue from; and a warning for each damaged
        file that was passed over.

    Raises:
        UserError: there are checkpoints, but every one is damaged, or one cannot be read, or comes
            from a later version.
    """
    warnings: list[str] = []
    for name in (LAST, PREVIOUS):
        try:
            state = load(folder / name)
            if name == PREVIOUS and warnings:
                with contextlib.suppress(OSError):
                    os.replace(folder / LAST, folder / DAMAGED)
            return state, warnings
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(
                f"{folder / name}: cannot be read ({error.strerror}); check the disk and who may read it"
            ) from error
        except DamagedCheckpoint as error:
            warnings.append(f"{error}; passed over")
    if warnings:
        raise UserError(
            f"{folder}: every checkpoint is damaged ({warnings[0]}); choose another logging.folder, "
            "or remove this one to start anew"
        )
    return None, []


def load_state(path: Path) -> dict[str, Any]:
    """The state of a run from a checkpoint that somebody named.

    Raises:
        UserError: there is no such file, or it is not the state of a run.
    """
    state = _load_named(path, f"--resume={path}")
    if "progress" not in state:
        raise UserError(f"--resume={path}: holds weights, but not the state of a run")
    return state


def _load_named(path: Path, setting: str) -> dict[str, Any]:
    try:
        state = load(path)
    except OSError as error:
        raise UserError(f"{setting}: cannot be read ({error.strerror})") from error
    except DamagedCheckpoint as error:
        raise UserError(f"{setting}: {str(error).removeprefix(f'{path}: ')}") from error
    if not isinstance(state, dict):
        raise UserError(f"{setting}: holds a {type(state).__name__}, not a checkpoint")
    return state


def load_weights(path: Path, setting: str = "") -> dict[str, torch.Tensor]:
    """The network's weights from a checkpoint of ours, a plain state dict, or one in a checkpoint; or
    from a file of safetensors, as timm publishes them.

    Args:
        path: the file.
        setting: what an error begins with; else ``--checkpoint=PATH``.

    Raises:
        UserError: there is no such file, or it is none of them.
    """
    setting = setting or f"--checkpoint={path}"
    if path.suffix == ".safetensors":
        return _load_safetensors(path, setting)
    state = _load_named(path, setting)
    weights: Any = state.get("learner", state)
    for key in ("model", "state_dict", "model"):  # as timm's and torchvision's scripts save them
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
    if not _is_state_dict(weights):
        raise UserError(f"{setting}: holds no state dict of a network")
    return _finite(weights, setting)


def _load_safetensors(path: Path, setting: str) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{setting}: needs safetensors: pip install 'ffcv_r50[timm]'") from error
    try:
        return _finite(load_file(path), setting)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{setting}: cannot be read ({error})") from error


def _is_state_dict(weights: Any) -> bool:
    return (
        isinstance(weights, dict)
        and bool(weights)
        and all(isinstance(name, str) and torch.is_tensor(t) for name, t in weights.items())
    )


def _is_whole(tensor: torch.Tensor) -> bool:
    """Whether its numbers are all in memory: a file may describe sparse and quantized tensors, some
    without numbers, and by strides of 0 some of terabytes.
    """
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.is_quantized:
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()


def _finite(weights: dict[str, torch.Tensor], setting: str) -> dict[str, torch.Tensor]:
    """The same weights, if they can be of any use."""
    for name, tensor in weights.items():
        if not _is_whole(tensor):
            raise UserError(f"{setting}: its {name} is no plain tensor; save it as one")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"{setting}: its {name} has values that are not finite; take weights from before the "
                "training diverged"
            )
    return weights
