"""Encoding images in a worker process, with the hashes that say which image became which bytes."""

from collections.abc import Sequence
from typing import NamedTuple

from ffcv_r50.data import samples
from writers import images
from writers.sources import Read


class Hashed(NamedTuple):
    """An image, see :class:`ffcv_r50.data.samples.Sample`."""

    image: images.Encoded | images.Failed
    source: str
    """Empty where the image could not be read."""
    stored: str
    """Empty where it is not stored."""


class _Remembering:
    """Reads an image file once and keeps the hash of it."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self.digest = ""

    def __call__(self) -> bytes:
        content = self._read()
        self.digest = samples.digest(content)
        return content


def encode_chunk(chunk: Sequence[tuple[Read, str]], encoding: images.Encoding) -> list[Hashed]:
    """:func:`writers.images.encode_chunk`, with hashes."""
    reads = [_Remembering(read) for read, _ in chunk]
    modes = [mode for _, mode in chunk]
    encoded = images.encode_chunk([*zip(reads, modes, strict=True)], encoding)
    return [
        Hashed(
            image,
            read.digest,
            samples.digest(image.data) if isinstance(image, images.Encoded) else "",
        )
        for read, image in zip(reads, encoded, strict=True)
    ]
