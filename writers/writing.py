"""From settings to a finished ``.beton`` file and its sidecar."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import features

import ffcv_r50
from ffcv_r50.data import beton
from ffcv_r50.errors import UserError
from ffcv_r50.files import atomic_write
from writers import images, leftovers, pool, progress, selection
from writers.beton_writer import PAGE_SIZE, BetonWriter
from writers.config import Writing
from writers.sources import SOURCES, Source


def write(cfg: Writing, page_size: int = PAGE_SIZE) -> None:
    """Write the file that ``cfg`` describes; the same settings and images give the same bytes.

    Until the last moment ``cfg.write_path`` holds what it held before. The old sidecar goes first,
    the new one comes last: a kill in between leaves a file without a sidecar, never with a wrong
    one.

    Raises:
        UserError: a setting, a path, or with ``on_error=stop`` an image is bad.
        WorkerDied: a worker process ended on its own.
        OSError: the disk is full, or the file cannot be written for another reason.
    """
    start = time.monotonic()
    path = _target(cfg.write_path)
    source = SOURCES[cfg.dataset]().build(cfg.data_dir, cfg.split)
    indices = _selected(cfg, source)
    for line in leftovers.sweep(path):
        print(line)
    sidecar_path = beton.sidecar_path(path)
    with atomic_write(sidecar_path) as sidecar_file, atomic_write(path) as file:
        writer = BetonWriter(file, len(indices), page_size)
        tally = _store(cfg, source, indices, writer)
        size = writer.finish()
        sidecar_file.write(_sidecar(cfg, source, tally).to_json())
        # A full disk must show before the old sidecar goes.
        for whole in (file, sidecar_file):
            whole.flush()
            os.fsync(whole.fileno())
        sidecar_path.unlink(missing_ok=True)
    seconds = time.monotonic() - start
    kept = f", {tally.kept:,} of them kept" if cfg.write_mode == "keep" else ""
    print(
        f"wrote {path}: {tally.stored:,} images of {len(source.classes):,} classes "
        f"({tally.raw:,} raw, {tally.jpeg:,} JPEG{kept}), {size / 1e6:,.1f} MB, {len(tally.skipped):,} skipped, {seconds:,.1f} s, "
        f"{len(indices) / seconds:,.0f} images/s"
    )


@dataclasses.dataclass
class _Tally:
    """What has become of the images."""

    class_counts: list[int]
    """Images stored of each class."""
    jpeg: int = 0
    raw: int = 0
    kept: int = 0
    """Of the JPEGs, those with their source's pixels."""
    num_bytes: int = 0
    skipped: list[dict[str, str]] = dataclasses.field(default_factory=list)
    """Path and reason of each, as the sidecar has them."""

    @property
    def stored(self) -> int:
        """Images in the file."""
        return self.jpeg + self.raw

    def add(self, label: int, image: images.Encoded) -> None:
        """Count an image that is stored."""
        self.class_counts[label] += 1
        self.jpeg += image.mode == beton.MODE_JPEG
        self.raw += image.mode == beton.MODE_RAW
        self.kept += image.kept
        self.num_bytes += len(image.data)


def _target(write_path: str) -> Path:
    """The path to write, if that can work."""
    path = Path(write_path).expanduser()
    if not path.name or path.is_dir():
        raise UserError(f"cfg.write_path: {path} is a folder; name the .beton file to write")
    # The finished file takes its place, which is not what somebody with a link or a pipe wants.
    if path.is_symlink():
        raise UserError(f"cfg.write_path: {path} is a link to {os.path.realpath(path)}; name that")
    for there in (path, beton.sidecar_path(path)):
        if there.exists() and not there.is_file():
            raise UserError(f"cfg.write_path: {there} is no regular file; name another")
    if not path.parent.is_dir():
        raise UserError(f"cfg.write_path: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"cfg.write_path: no permission to write in {path.parent}")
    return path


def _selected(cfg: Writing, source: Source) -> Sequence[int]:
    """Which images of ``source`` are written; says how many there are and how many are taken."""
    total = len(source.names)
    ignored = f", {source.ignored:,} other files ignored" if source.ignored else ""
    print(f"{source.root}: {total:,} images of {len(source.classes):,} classes{ignored}")
    if cfg.subset == -1:
        return range(total)
    indices = selection.subset(source, cfg.subset, cfg.seed)
    present = len({source.labels[i] for i in indices})
    print(f"taking {cfg.subset:,} of them, of {present:,} classes")
    return indices


def _store(cfg: Writing, source: Source, indices: Sequence[int], writer: BetonWriter) -> _Tally:
    """Encode the images and add them to the file.

    Raises:
        UserError: an image cannot be stored and ``on_error=stop``, or none can.
    """
    tally = _Tally([0] * len(source.classes))
    results = _encoded(cfg, source, indices, writer.page_size)
    with contextlib.closing(results), progress.shown(len(indices)) as report:
        for done, (i, result) in enumerate(zip(indices, results, strict=True), 1):
            if isinstance(result, images.Encoded):
                label = source.labels[i]
                writer.add(result.mode, result.height, result.width, result.data, label)
                tally.add(label, result)
            elif cfg.on_error == "stop":
                raise UserError(
                    f"{source.root / source.names[i]}: {result.reason}; repair or remove it, or "
                    "leave out such images with --cfg.on_error=skip"
                )
            else:
                tally.skipped.append({"path": _text(source.names[i]), "reason": result.reason})
            report(done, tally.num_bytes)
    if not tally.stored:
        first = tally.skipped[0]
        raise UserError(
            f"{source.root}: none of its {len(indices):,} images can be stored, "
            f"the first is {first['path']}: {first['reason']}"
        )
    return tally


def _encoded(
    cfg: Writing, source: Source, indices: Sequence[int], page_size: int
) -> Generator[images.Encoded | images.Failed, None, None]:
    """What is stored of each image, in order."""
    encoding = images.Encoding(
        max_resolution=cfg.max_resolution,
        jpeg_quality=cfg.jpeg_quality,
        smart_threshold=cfg.smart_threshold or 0.0,
        exif_rotate=cfg.exif_rotate,
        max_bytes=page_size,
    )
    size = cfg.chunk_size
    parts = (indices[at : at + size] for at in range(0, len(indices), size))
    chunks = (
        ([(source.reader(i), _mode(cfg, source.names[i])) for i in part], encoding)
        for part in parts
    )
    workers = cfg.num_workers or len(os.sched_getaffinity(0))
    with contextlib.closing(pool.ordered_map(images.encode_chunk, chunks, workers)) as results:
        for chunk in results:
            yield from chunk


def _mode(cfg: Writing, name: str) -> str:
    """``raw``, ``jpg``, ``smart`` or ``keep`` for one image."""
    if cfg.write_mode != "proportion":
        return cfg.write_mode
    share = cfg.compress_probability or 0.0
    return "jpg" if selection.draw(cfg.seed, "compress", name) < share else "raw"


def _sidecar(cfg: Writing, source: Source, tally: _Tally) -> beton.Sidecar:
    settings: dict[str, Any] = dict(cfg)
    return beton.Sidecar(
        classes=[_text(name) for name in source.classes],
        num_samples=tally.stored,
        class_counts=tally.class_counts,
        kept=tally.kept,
        settings={k: _text(v) if isinstance(v, str) else v for k, v in settings.items()},
        versions={
            **ffcv_r50.versions(np),
            "pillow": PIL.__version__,
            "libjpeg-turbo": features.version("libjpeg_turbo") or "not used",
        },
        source=_text(str(source.root.absolute())),
        skipped=tally.skipped,
    )


def _text(name: str) -> str:
    """A file name as JSON can hold it: bytes that are not UTF-8 become replacement characters."""
    return os.fsencode(name).decode(errors="replace")
