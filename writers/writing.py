"""From settings to a finished ``.beton`` file and its sidecar."""

import contextlib
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import features

import ffcv_r50
from ffcv_r50.data import beton, samples
from ffcv_r50.errors import UserError
from writers import fields, hashing, images, partial, pool, progress, selection, shards
from writers.beton_writer import PAGE_SIZE, BetonWriter
from writers.config import Writing
from writers.sources import Source


def write(cfg: Writing, page_size: int = PAGE_SIZE) -> None:
    """Write the file that ``cfg`` describes; the same settings and images give the same bytes.

    Until the last moment ``cfg.write_path`` holds what it held before. What ends early (killed, an image
    that cannot be read, a full disk) is continued by the same command, see :mod:`writers.partial`.

    Raises:
        UserError: a setting, a path, or with ``on_error=stop`` an image is bad.
        WorkerDied: a worker process ended on its own.
        OSError: the disk is full, or the file cannot be written for another reason.
    """
    start = time.monotonic()
    path = target(cfg.write_path)
    cfg, source = selection.source(cfg)
    indices = _selected(cfg, source)
    with partial.opened(path, _key(cfg, source, indices, page_size)) as files:
        work = _Work(cfg, source, indices, files, page_size)
        before = work.done
        if not files.finished:
            work.store()
            work.writer.finish()
            files.finish(_sidecar(cfg, source, work).to_json())
        files.publish()
    tally = work.tally
    seconds = time.monotonic() - start
    kept = f", {tally.kept:,} of them kept" if cfg.write_mode == "keep" else ""
    print(
        f"wrote {path}: {tally.stored:,} images of {len(source.classes):,} classes "
        f"({tally.raw:,} raw, {tally.jpeg:,} JPEG{kept}), {path.stat().st_size / 1e6:,.1f} MB, {len(tally.skipped):,} skipped, {seconds:,.1f} s, "
        f"{(len(indices) - before) / seconds:,.0f} images/s"
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

    def add(self, label: int, mode: int, size: int) -> None:
        """Count an image that is stored."""
        self.class_counts[label] += 1
        self.jpeg += mode == beton.MODE_JPEG
        self.raw += mode == beton.MODE_RAW
        self.num_bytes += size


class _Work:
    """The images of a selection on their way into the file, page by page.

    What earlier starts have done is taken from the journal as it begins.
    """

    def __init__(
        self,
        cfg: Writing,
        source: Source,
        indices: Sequence[int],
        files: partial.Partial,
        page_size: int,
    ) -> None:
        self.done = 0
        """Images stored or skipped."""
        self.tally = _Tally([0] * len(source.classes))
        names = (fields.LABEL, fields.INDEX) if cfg.index_field else (fields.LABEL,)
        self.writer = BetonWriter(
            files.data, len(indices), page_size, self._end_page, fields.image_and(*names)
        )
        self._cfg = cfg
        self._source = source
        self._indices = indices
        self._files = files
        self._names: list[samples.Sample] = []
        self._rows: list[tuple[int, ...]] = []
        self._journaled = 0  # of the skipped
        self._kept = 0  # since the page before
        for page in files.pages():
            self.writer.restore(page.rows)
            for mode, _, _, size, label, *_ in page.rows:
                self.tally.add(label, mode, size)
            self.tally.skipped += page.skipped
            self.tally.kept += page.kept
            self.done = page.images
        self._journaled = len(self.tally.skipped)

    def store(self) -> None:
        """Encode what is left and add it to the file.

        Raises:
            UserError: an image cannot be stored and ``on_error=stop``, or none can.
        """
        source, total = self._source, len(self._indices)
        rest = self._indices[self.done :]
        results = _encoded(self._cfg, source, rest, self.writer.page_size)
        with contextlib.closing(results), progress.shown(total, self.done) as report:
            for i, result in zip(rest, results, strict=True):
                if isinstance(result.image, images.Encoded):
                    self._add(i, result, result.image)
                elif self._cfg.on_error == "stop":
                    raise UserError(
                        f"{source.place(i)}: {result.image.reason}; repair or remove "
                        "it, or leave out such images with --cfg.on_error=skip"
                    )
                else:
                    self.tally.skipped.append(
                        {"path": _text(source.names[i]), "reason": result.image.reason}
                    )
                self.done += 1
                report(self.done, self.tally.num_bytes)
        if not self.tally.stored:
            first = self.tally.skipped[0]
            raise UserError(
                f"{source.root}: none of its {total:,} images can be stored, "
                f"the first is {first['path']}: {first['reason']}"
            )

    def _add(self, i: int, hashed: hashing.Hashed, image: images.Encoded) -> None:
        label, size = self._source.labels[i], len(image.data)
        ints = [label]
        if self._cfg.index_field:
            ints.append(selection.source_index(self._source, i))
        self.writer.add(image.mode, image.height, image.width, image.data, *ints)
        self.tally.add(label, image.mode, size)
        self.tally.kept += image.kept
        self._kept += image.kept
        self._rows.append((image.mode, image.height, image.width, size, *ints))
        self._names.append(
            samples.Sample(_text(self._source.names[i]), hashed.source, hashed.stored)
        )

    def _end_page(self) -> None:
        """A page is in the file: so are its samples' names, and the journal knows it."""
        self._files.names.write(samples.pack(self._names))
        skipped = self.tally.skipped[self._journaled :]
        self._files.add(
            partial.Page(self.done, self._rows, self._kept, skipped, self._files.names.tell())
        )
        self._journaled += len(skipped)
        self._names, self._rows, self._kept = [], [], 0


def target(write_path: str, setting: str = "cfg.write_path") -> Path:
    """The path to write, which the user gave as ``setting``.

    Raises:
        UserError: nothing can be written there.
    """
    path = Path(write_path).expanduser()
    if not path.name or path.is_dir():
        raise UserError(f"{setting}: {path} is a folder; name the .beton file to write")
    # The finished file takes its place, which is not what somebody with a link or a pipe wants.
    if path.is_symlink():
        raise UserError(f"{setting}: {path} is a link to {os.path.realpath(path)}; name that")
    for there in (path, beton.sidecar_path(path)):
        if there.exists() and not there.is_file():
            raise UserError(f"{setting}: {there} is no regular file; name another")
    if not path.parent.is_dir():
        raise UserError(f"{setting}: there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{setting}: no permission to write in {path.parent}")
    return path


_WITHOUT_EFFECT = {"write_path", "on_error", "num_workers", "chunk_size"}
"""Settings that may be others when a writer continues."""


def _selected(cfg: Writing, source: Source) -> Sequence[int]:
    """Which images of ``source`` are written; says how many there are and how many are taken."""
    total = len(source.names)
    ignored = f", {source.ignored:,} other files ignored" if source.ignored else ""
    print(f"{source.root}: {total:,} images of {len(source.classes):,} classes{ignored}")
    indices: Sequence[int] = range(total)
    if cfg.subset != -1:
        indices = selection.subset(source, cfg.subset, cfg.seed)
        present = len({source.labels[i] for i in indices})
        print(f"taking {cfg.subset:,} of them, of {present:,} classes")
    if cfg.shuffle:
        indices = selection.shuffled(source, indices, cfg.seed)
    if cfg.shard is not None and (shard := shards.shard_numbers(cfg.shard)):
        indices = shards.part(indices, *shard)
        print(f"part {cfg.shard}: {len(indices):,} images")
    return indices


def _key(cfg: Writing, source: Source, indices: Sequence[int], page_size: int) -> str:
    """Hash of what decides on the bytes of the file, but for the bytes of the images."""
    settings = cfg.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    head = json.dumps([settings, _versions(), page_size, [*map(_text, source.classes)]])
    names = (b"%d %s\0" % (source.labels[i], os.fsencode(source.names[i])) for i in indices)
    return beton.content_digest(itertools.chain([head.encode()], names))


def _encoded(
    cfg: Writing, source: Source, indices: Sequence[int], page_size: int
) -> Generator[hashing.Hashed, None, None]:
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
    with contextlib.closing(pool.ordered_map(hashing.encode_chunk, chunks, workers)) as results:
        for chunk in results:
            yield from chunk


def _mode(cfg: Writing, name: str) -> str:
    """``raw``, ``jpg``, ``smart`` or ``keep`` for one image."""
    if cfg.write_mode != "proportion":
        return cfg.write_mode
    share = cfg.compress_probability or 0.0
    return "jpg" if selection.draw(cfg.seed, "compress", name) < share else "raw"


def _sidecar(cfg: Writing, source: Source, work: _Work) -> beton.Sidecar:
    settings: dict[str, Any] = dict(cfg)
    return beton.Sidecar(
        classes=[_text(name) for name in source.classes],
        num_samples=work.tally.stored,
        class_counts=work.tally.class_counts,
        kept=work.tally.kept,
        settings={k: _text(v) if isinstance(v, str) else v for k, v in settings.items()},
        versions=_versions(),
        source=_text(str(source.root.absolute())),
        skipped=work.tally.skipped,
        content=work.writer.content,
        words={n: _text(w) for n, w in selection.words(cfg, source.classes).items()},
    )


def _versions() -> dict[str, str]:
    return {
        **ffcv_r50.versions(np),
        "pillow": PIL.__version__,
        "libjpeg-turbo": features.version("libjpeg_turbo") or "not used",
    }


def _text(name: str) -> str:
    """A file name as JSON can hold it: bytes that are not UTF-8 become replacement characters."""
    return os.fsencode(name).decode(errors="replace")
