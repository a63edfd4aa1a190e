"""Whether each byte of a dataset is what its writer wrote, and each image can be decoded."""

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ffcv_r50.data import samples
from ffcv_r50.data.beton import Beton
from ffcv_r50.errors import one_line
from writers.inspect import reading

SHOWN = 20
"""Findings that are printed; the others are counted."""


class Finding(NamedTuple):
    """A thing that is wrong."""

    sample: int | None
    """Where it is one sample's."""
    reason: str


def verify(dataset: Beton) -> bool:
    """Print what is wrong.

    Returns:
        Whether anything is.
    """
    count = 0
    for count, (sample, reason) in enumerate(findings(dataset), 1):
        if count <= SHOWN:
            where = "" if sample is None else f"sample {sample}{_called(dataset, sample)}: "
            print(one_line(f"{where}{reason}"))
    if count > SHOWN:
        print(f"... and {count - SHOWN:,} more")
    known = samples.path_beside(dataset.path).exists() and dataset.sidecar
    unseen = "" if known else " (without the writer's hashes: damage that decodes is not seen)"
    print(f"verified {dataset.num_samples:,} samples: {count:,} findings{unseen}")
    return count > 0


def findings(dataset: Beton) -> Iterator[Finding]:
    """All that is wrong.

    Raises:
        UserError: the samples file is damaged itself.
        RunFault: the dataset cannot be read.
    """
    if dataset.sidecar and dataset.sidecar.content:
        if dataset.sidecar.content != dataset.identity.content:
            yield Finding(None, "header, metadata or allocation table: not what was written")
        yield from (Finding(None, line) for line in _padding(dataset))
    hashes = _hashes(dataset)

    def check(sample: int, data: bytes) -> str:
        at = 16 * sample
        if hashes and bytes.fromhex(samples.digest(data)) != hashes[at : at + 16]:
            return "not the bytes that were written"
        try:
            reading.decode(dataset, sample, data)
        except reading.Damaged as error:
            return str(error)
        return ""

    for sample, reason in reading.each(dataset, check):
        if reason:
            yield Finding(sample, reason)


def _hashes(dataset: Beton) -> bytearray:
    """16 bytes for each sample; none where the dataset has no samples file."""
    hashes = (
        bytearray()
    )  # grows in place: a list of a million bytes objects takes five times the memory
    for line in samples.read(dataset.path, dataset.num_samples) or ():
        hashes += bytes.fromhex(line.stored)
    return hashes


def _called(dataset: Beton, sample: int) -> str:
    for i, line in enumerate(samples.read(dataset.path, dataset.num_samples) or ()):
        if i == sample:
            return f" ({line.name})"
    return ""


def _padding(dataset: Beton) -> Iterator[str]:
    """What lies between the samples: the ends of pages, and room for the metadata of images that were
    left out. No loader reads it; it is zeros, and something else means that a disk or a copy failed.
    """
    order = np.argsort(dataset.offsets, kind="stable")
    begins = np.append(dataset.offsets[order], dataset.pages.stop)
    ends = np.append(dataset.pages.start, (dataset.offsets + dataset.sizes)[order])
    for gap in np.flatnonzero(begins != ends):
        begin, end = int(ends[gap]), int(begins[gap])
        if end < begin:
            yield f"byte {end:,}: samples overlap"
        while begin < end:
            part = os.pread(dataset.descriptor, min(end - begin, 1 << 20), begin)
            if not part:
                break  # shorter than it was; reading the samples says so
            if any(part):
                at = begin + len(part) - len(part.lstrip(b"\0"))
                yield f"byte {at:,}: padding that is not zero"
            begin += len(part)
