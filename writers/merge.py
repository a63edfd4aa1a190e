"""Join `.beton` files: the parts of `--cfg.shard`, or others with the same fields and classes.

    python -m writers.merge OUT IN IN ...

Nothing is decoded. All parts of one dataset, in any order, give the bytes of one write; other files
follow one another as they are named. What their writers left is checked: class names, settings, hashes.
"""

import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ffcv_r50.config import command_line
from ffcv_r50.data import beton, samples
from ffcv_r50.errors import RunFault, UserError, exit_with
from ffcv_r50.registry import Options
from writers import fields, partial, progress, shards
from writers.beton_writer import BetonWriter
from writers.config import Writing
from writers.writing import target

_POINTERS = {beton.TYPE_IMAGE: "data_ptr", 3: "ptr", 4: "", 5: "ptr", 6: ""}
"""Field type -> which member of its metadata is a position in the file; "" where all of it is."""

_OF_A_PART = {"shard", "write_path", "num_workers", "chunk_size", "on_error"}
"""Settings in which the parts of one dataset may differ."""


class Part(NamedTuple):
    """What is kept of an input between the checks and the copying."""

    path: Path
    num_samples: int
    page_size: int
    pages: range
    num_blocks: int
    """Rows of the allocation table."""
    fields: npt.NDArray[Any]
    """[fields] their descriptors."""
    class_counts: npt.NDArray[np.int64]
    sidecar: beton.Sidecar | None
    content: str
    """:attr:`ffcv_r50.data.beton.Identity.content`."""
    has_names: bool

    @property
    def metadata_type(self) -> np.dtype[np.void]:
        """The record of a sample."""
        return beton.metadata_dtype([int(t) for t in self.fields["type_id"]])


class NoOptions(Options):
    """What is joined follows from the files."""


def main(argv: Sequence[str]) -> None:
    """Join the files of a command line."""
    names, _, unknown = command_line.with_names(NoOptions, argv or ["--help"], __doc__ or "")
    command_line.refuse(unknown)
    if len(names) < 2:
        raise UserError("command line: write: python -m writers.merge OUT IN IN ...")
    try:
        merge(names[0], names[1:])
    except OSError as error:
        reason = error.strerror or error
        raise RunFault(f"joining into {names[0]} failed: {reason}; it is as it was") from error


def merge(output: str, inputs: Sequence[str]) -> None:
    """Join files, as :data:`__doc__` says.

    Raises:
        UserError: a file is damaged, they do not belong together, or a part is missing.
        OSError: the output cannot be written.
    """
    start = time.monotonic()
    path = target(output, "output")
    parts = in_order([_opened(Path(name)) for name in inputs])
    _check_together(path, parts)
    key = json.dumps(["merge", *(part.content for part in parts)])
    with_names = all(part.has_names for part in parts)
    if not with_names and any(part.has_names for part in parts):
        missing = next(part for part in parts if not part.has_names)
        print(f"note: {path} gets no samples file, as {missing.path} has none")
    with partial.opened(path, key) as files:
        if not files.finished:
            writer = _copy(parts, files, with_names)
            writer.finish()
            sidecar = _sidecar(path, parts, writer.content)
            files.finish(sidecar.to_json() if sidecar else None, names=with_names)
        files.publish()
    total = sum(part.num_samples for part in parts)
    print(
        f"wrote {path}: {total:,} samples of {len(parts):,} files, "
        f"{path.stat().st_size / 1e6:,.1f} MB, {time.monotonic() - start:,.1f} s"
    )


def _opened(path: Path) -> Part:
    """Look at an input.

    Raises:
        UserError: it is no dataset, or damaged.
    """
    dataset = beton.Beton(path)
    sidecar = dataset.sidecar
    content = dataset.identity.content
    if sidecar and sidecar.content and sidecar.content != content:
        raise UserError(
            f"{path}: its header, metadata or table are not what was written; copy or write it again"
        )
    return Part(
        path,
        dataset.num_samples,
        dataset.page_size,
        dataset.pages,
        (dataset.length - dataset.pages.stop) // beton.ALLOCATION.itemsize,
        fields.of_file(path),
        np.bincount(dataset.labels, minlength=dataset.num_classes),
        sidecar,
        content,
        samples.path_beside(path).exists(),
    )


def in_order(parts: Sequence[Part]) -> list[Part]:
    """Parts of one dataset by their numbers; other files as they are.

    Raises:
        UserError: a part is missing, there twice, or of another dataset.
    """
    found: dict[tuple[int, int], Part] = {}
    for part in parts:
        text = part.sidecar.settings.get("shard") if part.sidecar else None
        numbers = shards.shard_numbers(text) if isinstance(text, str) else None
        if numbers and numbers in found:
            raise UserError(
                f"{part.path}: is part {text}, as is {found[numbers].path}; leave one out"
            )
        if numbers:
            found[numbers] = part
    if not found:
        return list(parts)
    count = next(iter(found))[1]
    if len(found) < len(parts) or any(n != count for _, n in found):
        raise UserError(
            "command line: parts of different datasets, or parts and other files; join the parts of "
            "each dataset first"
        )
    if missing := [i for i in range(1, count + 1) if (i, count) not in found]:
        raise UserError(
            f"command line: part {missing[0]}/{count} is missing, and {len(missing) - 1} others; name "
            "all parts"
        )
    ordered = [found[i, count] for i in range(1, count + 1)]
    first = ordered[0]
    for part in ordered[1:]:
        for name, value in _settings(first).items():
            if name not in _OF_A_PART and _settings(part).get(name) != value:
                raise UserError(
                    f"{part.path}: was written with {name}={_settings(part).get(name)}, "
                    f"{first.path} with {value}; write it again"
                )
    return ordered


def _settings(part: Part) -> dict[str, Any]:
    """The writer's; a setting that came later than a part has its default there."""
    if part.sidecar is None:
        return {}
    known = {name: setting.default for name, setting in Writing.model_fields.items()}
    return known | part.sidecar.settings


def _check_together(path: Path, parts: Sequence[Part]) -> None:
    """See that the inputs can be one dataset.

    Raises:
        UserError: they cannot.
    """
    first = parts[0]
    named = next((part for part in parts if part.sidecar), None)
    for i, part in enumerate(parts):
        if path.exists() and path.samefile(part.path):
            raise UserError(f"output: {path} is one of the files to join; name another")
        if any(part.path.samefile(other.path) for other in parts[:i]):
            raise UserError(f"{part.path}: is named twice; leave it out once")
        if part.fields.tobytes() != first.fields.tobytes():
            raise UserError(
                f"{part.path}: has the fields {fields.described(part.fields)}, {first.path} has "
                f"{fields.described(first.fields)}; only files with the same fields can be joined"
            )
        if named is None or named.sidecar is None:
            continue
        classes = named.sidecar.classes
        if part.sidecar and part.sidecar.classes != classes:
            raise UserError(
                f"{part.path}: has other class names than {named.path}; only files with the same "
                "classes can be joined"
            )
        if len(part.class_counts) > len(classes):
            raise UserError(
                f"{part.path}: has a label {len(part.class_counts) - 1:,}, {named.path} has "
                f"{len(classes):,} classes; only files with the same classes can be joined"
            )
    total = sum(part.num_samples for part in parts)
    if total > beton.MAX_SAMPLES:
        raise UserError(f"command line: {total:,} samples are more than a file can hold")


def _copy(parts: Sequence[Part], files: partial.Partial, with_names: bool) -> BetonWriter:
    """Put all samples into one file, page by page as if they had been written at once."""
    lines: list[samples.Sample] = []

    def end_page() -> None:
        if with_names:
            files.names.write(samples.pack(lines))
            lines.clear()

    for _ in files.pages():  # none: what was begun is written anew
        pass
    left_out = sum(len(part.sidecar.skipped) for part in parts if part.sidecar)
    total = sum(part.num_samples for part in parts)
    writer = BetonWriter(
        files.data,
        total + left_out,
        max(part.page_size for part in parts),
        end_page,
        parts[0].fields,
        sum(part.num_blocks for part in parts),
    )
    done = size = 0
    with progress.shown(total) as report:
        for part in parts:
            named = samples.read(part.path, part.num_samples)
            first = writer.num_samples
            metadata = np.fromfile(
                part.path,
                part.metadata_type,
                part.num_samples,
                offset=beton.HEADER.itemsize + part.fields.nbytes,
            )
            table = np.fromfile(part.path, beton.ALLOCATION, offset=part.pages.stop)
            rows = table[table["sample_id"] < part.num_samples]
            # In the order they lie in; of blocks at one place the largest last, which then counts.
            rows = rows[np.lexsort((rows["size"], rows["ptr"]))]
            positions = np.empty(len(rows), np.uint64)
            for i, (sample, data) in enumerate(_blocks(part, rows)):
                line = _line(part, named, sample, i, data) if named else None
                positions[i] = writer.add_block(first + sample, data)
                if line:
                    lines.append(line)
                size += len(data)
                report(min(done + i + 1, done + part.num_samples), size)
            _check_all_read(named)
            _relocate(part, metadata, rows, positions)
            writer.metadata[first : first + part.num_samples] = metadata
            writer.num_samples += part.num_samples
            done += part.num_samples
    return writer


def _blocks(part: Part, rows: npt.NDArray[Any]) -> Iterator[tuple[int, bytes]]:
    """Sample and content of each block.

    Raises:
        UserError: one does not lie in the file's pages.
    """
    with open(part.path, "rb", buffering=1 << 20) as file:
        for row in rows:
            sample, position, size = row.item()
            if position not in part.pages or size > min(part.pages.stop - position, part.page_size):
                raise UserError(
                    f"{part.path}: damaged, a block of sample {sample} is outside of its pages"
                )
            file.seek(position)
            data = file.read(size)
            if len(data) < size:
                raise UserError(f"{part.path}: became shorter while it was read; copy it again")
            yield sample, data


def _line(
    part: Part, named: Iterator[samples.Sample], sample: int, place: int, data: bytes
) -> samples.Sample:
    """What the samples file says of a sample, whose bytes are the ones that it was made of.

    Raises:
        UserError: they are not.
    """
    line = next(named)
    if sample != place or samples.digest(data) != line.stored:
        raise UserError(
            f"{part.path}: sample {sample:,} ({line.name}) is not what was written; see python -m "
            "writers.inspect FILE --verify"
        )
    return line


def _check_all_read(named: Iterable[samples.Sample] | None) -> None:
    for _ in named or ():  # none is left; but at its end the file sees whether it was whole
        pass


def _relocate(
    part: Part,
    metadata: npt.NDArray[Any],
    rows: npt.NDArray[Any],
    positions: npt.NDArray[np.uint64],
) -> None:
    """Change positions in the metadata from those in the input to those in the output.

    Raises:
        UserError: the input's table lacks one.
    """
    for i, type_id in enumerate(part.fields["type_id"]):
        if int(type_id) not in _POINTERS:
            continue
        member = _POINTERS[int(type_id)]
        pointers = metadata[f"f{i}"][member] if member else metadata[f"f{i}"]
        here = pointers[rows["sample_id"]] == rows["ptr"]
        known = np.zeros(len(metadata), bool)
        known[rows["sample_id"][here]] = True
        if not known.all():
            raise UserError(
                f"{part.path}: damaged, the data of sample {int(np.argmin(known)):,} is not in its "
                "allocation table; copy or write it again"
            )
        pointers[rows["sample_id"][here]] = positions[here]


def _sidecar(path: Path, parts: Sequence[Part], content: str) -> beton.Sidecar | None:
    """What the inputs' sidecars say together; none if no input has one."""
    sidecars = [part.sidecar for part in parts if part.sidecar]
    if not sidecars:
        return None
    classes = sidecars[0].classes
    counts = np.zeros(len(classes), np.int64)
    for part in parts:
        counts[: len(part.class_counts)] += part.class_counts
    changed = {"shard": None, "write_path": str(path)}
    versions = {name: _all(s.versions.get(name) for s in sidecars) for name in sidecars[0].versions}
    return beton.Sidecar(
        classes=classes,
        num_samples=sum(part.num_samples for part in parts),
        class_counts=counts.tolist(),
        kept=sum(sidecar.kept for sidecar in sidecars),
        settings={
            name: changed.get(name, value)
            for name, value in sidecars[0].settings.items()
            if name in changed or all(s.settings.get(name) == value for s in sidecars)
        },
        versions=versions,
        source=_all(s.source for s in sidecars),
        skipped=[*itertools.chain(*(s.skipped for s in sidecars))],
        content=content,
        words={name: word for sidecar in sidecars for name, word in sidecar.words.items()},
    )


def _all(texts: Iterable[str | None]) -> str:
    """The different ones, in their order."""
    return ", ".join(dict.fromkeys(text for text in texts if text))


if __name__ == "__main__":
    exit_with(lambda: main(sys.argv[1:]))
