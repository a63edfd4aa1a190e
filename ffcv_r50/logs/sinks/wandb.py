"""Weights & Biases, by its own package."""

import json
import struct
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from ffcv_r50.files import atomic_write
from ffcv_r50.logs.sinks import SINKS, Sink, SinkOptions, needs_package

BLOCK = 32 * 1024
WHOLE, FIRST, _MIDDLE, LAST = 1, 2, 3, 4


@SINKS.register("wandb")
class WandBOptions(SinkOptions):
    """A run on Weights & Biases, whose id is kept in the folder: a continued run is the same one."""

    project: str = "ffcv_r50"
    """The project there."""
    name: str | None = None
    """Of the run; null is that of its folder."""
    tags: tuple[str, ...] = ()
    """Of the run."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes files below the folder, for `wandb sync` later."""

    def check(self) -> None:
        """See :meth:`~ffcv_r50.logs.sinks.SinkOptions.check`."""
        needs_package("wandb", "wandb")

    def build(self, folder: Path) -> Sink:
        """See :class:`WandB`."""
        return WandB(self, folder)


class WandB:
    """The rows of steps as ``steps/loss``, ... over ``step``, those of epochs as ``epochs/top_1``, ...
    over ``epoch``.

    What W&B was given it keeps: it cannot forget. What it was given just before a kill it has lost,
    offline up to 32 KiB of it. So a continued run asks how far it got and goes on there; what is done
    again is the same.

    Args:
        options: of the run.
        folder: of the run; the package makes ``wandb`` in it.
    """

    def __init__(self, options: WandBOptions, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._run: Any = None
        self._next = {"epoch": 0, "step": 0}

    def step(self, number: int, values: Mapping[str, Any]) -> None:
        """A point of each curve of steps."""
        self._log("step", number, values)

    def epoch(self, number: int, values: Mapping[str, Any]) -> None:
        """A point of each curve of epochs."""
        self._log("epoch", number, values)

    def rewind(self, epochs: int, steps: int) -> tuple[int, int]:
        """Begin, or continue, the run; what it has needs not come again."""
        self._begin()
        return self._next["epoch"], self._next["step"]

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()

    def _begin(self) -> Any:
        import wandb  # here: it takes a second

        if self._run is None:
            options, config = self._options, self._folder / "config.yaml"
            offline = options.mode == "offline"
            self._run = wandb.init(
                project=options.project,
                name=options.name or self._folder.resolve().name,
                tags=options.tags,
                mode=options.mode,
                id=self._id(),
                resume=None if offline else "allow",
                dir=self._folder,
                config=yaml.safe_load(config.read_text()) if config.exists() else None,
                # Who is not logged in is told so, not asked for a key in the middle of training.
                settings=wandb.Settings(silent=True, console="off", login_timeout=1),
            )
            for kind in self._next:
                self._run.define_metric(kind)
                self._run.define_metric(f"{kind}s/*", step_metric=kind)
            had = self._written() if offline else [dict(self._run.summary)]
            for kind in self._next:
                self._next[kind] = max(
                    (int(row[kind]) + 1 for row in had if kind in row), default=0
                )
        return self._run

    def _log(self, kind: str, number: int, values: Mapping[str, Any]) -> None:
        run = self._begin()
        if number < self._next[kind]:
            return
        numbers = {
            f"{kind}s/{name}": value
            for name, value in values.items()
            if name not in self._next and isinstance(value, (int, float))
        }
        try:
            run.log({kind: number, **numbers})
        except Exception:
            self._run = None  # its process may be gone: the next try makes another
            raise
        self._next[kind] = number + 1

    def _id(self) -> str:
        """Of the run; chosen by its first start."""
        path = self._folder / "wandb" / "id"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path) as file:
                file.write(uuid.uuid4().hex[:8].encode())
        return path.read_text()

    def _written(self) -> list[dict[str, Any]]:
        """The rows in the files of earlier starts."""
        from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

        rows = []
        for path in self._folder.glob("wandb/offline-run-*/*.wandb"):
            for content in records(path.read_bytes()):
                record = Record()
                record.ParseFromString(content)
                items = record.history.item
                rows.append({_key(item): json.loads(item.value_json) for item in items})
        return rows


def _key(item: Any) -> str:
    """Older versions of the package write it whole, newer ones in parts."""
    return item.key or ".".join(item.nested_key)


def records(content: bytes) -> Iterator[bytes]:
    """The whole records of a ``.wandb`` file: LevelDB's log format behind a header of seven bytes.

    Newer versions of the package have no reader of their own in Python.
    """
    place, record = 7, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:  # too little for a header: the block ends with zeros
            place += BLOCK - place % BLOCK
            continue
        size, kind = struct.unpack_from("<HB", content, place + 4)
        part = content[place + 7 : place + 7 + size]
        if len(part) < size:
            return
        place += 7 + size
        record = part if kind in (WHOLE, FIRST) else record + part
        if kind in (WHOLE, LAST):
            yield record
