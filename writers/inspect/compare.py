"""Which images are in two datasets."""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from ffcv_r50.data import samples
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import one_line
from writers.inspect import reading

SHOWN = 20
"""Pairs that are printed; the others are counted."""


class Same(NamedTuple):
    """An image that is in both."""

    first: int
    """Sample of the one dataset."""
    second: int
    """Sample of the other."""
    name: str
    """Of the first; empty where it has no samples file."""
    other_name: str


def compare(dataset: Beton, other: Beton) -> bool:
    """Print the images that are in both.

    Returns:
        Whether there are any.
    """
    for one in (dataset, other):
        if not samples.path_beside(one.path).exists():
            print(
                f"note: {one.path} has no samples file; found are only images that both store as "
                "the same bytes"
            )
    count = 0
    for count, same in enumerate(pairs(dataset, other), 1):
        if count <= SHOWN:
            sides = (dataset, same.first, same.name), (other, same.second, same.other_name)
            print("  " + " = ".join(_described(*side) for side in sides))
    if count > SHOWN:
        print(f"  ... and {count - SHOWN:,} more")
    print(f"{count:,} images of {dataset.path} are also in {other.path}")
    return count > 0


def pairs(dataset: Beton, other: Beton) -> list[Same]:
    """Samples that came from the same image file or are stored as the same bytes.

    Memory is taken for the hashes of the smaller of the two. An image that is several times in one of
    them makes several pairs.
    """
    swapped = dataset.num_samples > other.num_samples
    small, large = (other, dataset) if swapped else (dataset, other)
    known: dict[bytes, list[int]] = defaultdict(list)
    for i, sample in enumerate(_samples(small)):
        for key in _keys(sample):
            known[key].append(i)
    matches: list[tuple[int, int, str]] = []
    for i, sample in enumerate(_samples(large)):
        partners = {partner for key in _keys(sample) for partner in known.get(key, ())}
        matches += [(partner, i, sample.name) for partner in partners]
    wanted = {match[0] for match in matches}
    lines = samples.read(small.path, small.num_samples) or ()
    called = {i: line.name for i, line in enumerate(lines) if i in wanted}
    found = [Same(i, j, called.get(i, ""), name) for i, j, name in matches]
    return sorted(Same(b, a, d, c) for a, b, c, d in found) if swapped else sorted(found)


def _keys(sample: samples.Sample) -> set[bytes]:
    return {bytes.fromhex(key) for key in (sample.source, sample.stored) if key}


def _samples(dataset: Beton) -> Iterator[samples.Sample]:
    """Those of the samples file, or the hashes of what is stored."""
    lines = samples.read(dataset.path, dataset.num_samples)
    if lines is not None:
        yield from lines
        return
    hashes = bytearray(16 * dataset.num_samples)
    for i, digest in reading.each(dataset, lambda _, data: samples.digest(data)):
        hashes[16 * i : 16 * i + 16] = bytes.fromhex(digest)
    for at in range(0, len(hashes), 16):
        yield samples.Sample("", "", hashes[at : at + 16].hex())


def _described(dataset: Beton, sample: int, name: str) -> str:
    label = int(dataset.labels[sample])
    classes = dataset.sidecar.names if dataset.sidecar else None
    of = classes[label] if classes else f"class {label}"
    return one_line(f"{dataset.path.name} {sample} ({name + ', ' if name else ''}{of})")
