"""From settings to a finished ``.beton`` file and its sidecar."""

import contextlib
import os
import platform
import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
import PIL
from PIL import features

import ffcv_r50
from ffcv_r50.data import beton
from ffcv_r50.errors import UserError
from ffcv_r50.files import atomic_write
from writers import images, leftovers, pool, progress, sources
from writers.beton_writer import PAGE_SIZE, BetonWriter
from writers.config import Writing


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
    source = _source(cfg)
    for line in leftovers.sweep(path):
        print(line)
    sidecar_path = beton.sidecar_path(path)
    with atomic_write(sidecar_path) as sidecar_file, atomic_write(path) as file:
        writer = BetonWriter(file, len(source.paths), page_size)
        counts = {beton.MODE_JPEG: 0, beton.MODE_RAW: 0}
        class_counts = [0] * len(source.classes)
        skipped: list[dict[str, str]] = []
        stored = 0
        results = _encoded(cfg, source, page_size)
        with contextlib.closing(results), progress.shown(len(source.paths)) as report:
            for i, (name, label, result) in enumerate(
                zip(source.paths, source.labels, results, strict=True), 1
            ):
                if isinstance(result, images.Encoded):
                    writer.add(result.mode, result.height, result.width, result.data, label)
                    counts[result.mode] += 1
                    class_counts[label] += 1
                    stored += len(result.data)
                elif cfg.on_error == "stop":
                    raise UserError(
                        f"{source.root / name}: {result.reason}; mend or remove it, or leave out "
                        "such images with --cfg.on_error=skip"
                    )
                else:
                    skipped.append({"path": _text(name), "reason": result.reason})
                report(i, stored)
        if writer.num_samples == 0:
            raise UserError(
                f"{source.root}: none of its {len(source.paths):,} images can be stored, "
                f"the first is {skipped[0]['path']}: {skipped[0]['reason']}"
            )
        size = writer.finish()
        sidecar_file.write(
            beton.Sidecar(
                classes=[_text(name) for name in source.classes],
                num_samples=writer.num_samples,
                class_counts=class_counts,
                settings={
                    name: _text(value) if isinstance(value, str) else value for name, value in cfg
                },
                versions=_versions(),
                source=_text(str(source.root.absolute())),
                skipped=skipped,
            ).to_json()
        )
        # A full disk must show before the old sidecar goes.
        for whole in (file, sidecar_file):
            whole.flush()
            os.fsync(whole.fileno())
        sidecar_path.unlink(missing_ok=True)
    seconds = time.monotonic() - start
    print(
        f"wrote {path}: {writer.num_samples:,} images of {len(source.classes):,} classes "
        f"({counts[beton.MODE_RAW]:,} raw, {counts[beton.MODE_JPEG]:,} JPEG), {size / 1e6:,.1f} MB, "
        f"{len(skipped):,} skipped, {seconds:,.1f} s, {len(source.paths) / seconds:,.0f} images/s"
    )


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


def _source(cfg: Writing) -> sources.Source:
    root = sources.find_root(cfg.data_dir, cfg.split)
    source = sources.image_folder(root)
    ignored = f", {source.ignored:,} other files ignored" if source.ignored else ""
    print(f"{root}: {len(source.paths):,} images of {len(source.classes):,} classes{ignored}")
    if cfg.subset == -1:
        return source
    source = sources.subset(source, cfg.subset, cfg.seed)
    present = len(set(source.labels))
    print(f"taking {cfg.subset:,} of them, of {present:,} classes")
    return source


def _encoded(
    cfg: Writing, source: sources.Source, page_size: int
) -> Generator[images.Encoded | images.Failed, None, None]:
    """What is stored of each image of ``source``, in order."""
    encoding = images.Encoding(
        max_resolution=cfg.max_resolution,
        jpeg_quality=cfg.jpeg_quality,
        smart_threshold=cfg.smart_threshold or 0.0,
        exif_rotate=cfg.exif_rotate,
        max_bytes=page_size,
    )
    chunks = (
        (
            str(source.root),
            [(name, _mode(cfg, name)) for name in source.paths[i : i + cfg.chunk_size]],
            encoding,
        )
        for i in range(0, len(source.paths), cfg.chunk_size)
    )
    workers = cfg.num_workers or len(os.sched_getaffinity(0))
    with contextlib.closing(pool.ordered_map(images.encode_chunk, chunks, workers)) as results:
        for chunk in results:
            yield from chunk


def _mode(cfg: Writing, name: str) -> str:
    """``raw``, ``jpg`` or ``smart`` for one image."""
    if cfg.write_mode != "proportion":
        return cfg.write_mode
    share = cfg.compress_probability or 0.0
    return "jpg" if sources.draw(cfg.seed, "compress", name) < share else "raw"


def _versions() -> dict[str, str]:
    return {
        "ffcv_r50": ffcv_r50.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "libjpeg-turbo": features.version("libjpeg_turbo") or "not used",
    }


def _text(name: str) -> str:
    """A file name as JSON can hold it: bytes that are not UTF-8 become replacement characters."""
    return os.fsencode(name).decode(errors="replace")
