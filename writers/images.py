"""From an image file to what is stored of it: RGB pixels, their size limit, JPEG or raw."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from ffcv_r50.data import beton, photos
from writers import area, lossless, restarts
from writers.sources import BadImage, Read

MAX_SIDE = 65500
"""libjpeg writes no longer side (and the format's u2 fields end soon after)."""


@dataclass(frozen=True)
class Encoding:
    """How images are stored; the fields are those of :class:`writers.config.Writing`."""

    max_resolution: int
    jpeg_quality: int
    smart_threshold: float
    exif_rotate: bool
    max_bytes: int
    """What a page holds: no stored image may be larger."""


class Encoded(NamedTuple):
    """What is stored of an image."""

    mode: int
    """MODE_JPEG or MODE_RAW."""
    height: int
    width: int
    data: bytes
    """The JPEG, or uint8 [height, width, 3]."""
    kept: bool = False
    """Its pixels are those of its source, see :mod:`writers.lossless`."""


class Failed(NamedTuple):
    """What is known of an image that is not stored."""

    reason: str


def encode_chunk(samples: Sequence[tuple[Read, str]], encoding: Encoding) -> list[Encoded | Failed]:
    """Encode images one after the other: what a worker process does.

    Args:
        samples: what reads it, and ``raw``, ``jpg``, ``smart`` or ``keep``, of each.
        encoding: how.

    Returns:
        As many results in the same order.
    """
    return [_encode(read, mode, encoding) for read, mode in samples]


def _encode(read: Read, mode: str, encoding: Encoding) -> Encoded | Failed:
    try:
        content = _content(read)
        if mode == "keep":
            limit = encoding.max_resolution or MAX_SIDE
            kept = lossless.rewrite(content, limit, encoding.exif_rotate)
            if kept is not None and len(kept.data) <= encoding.max_bytes:
                return Encoded(beton.MODE_JPEG, *kept, kept=True)
            mode = "jpg"
        return encode(photos.read(content, encoding.exif_rotate), mode, encoding)
    except BadImage as error:
        return Failed(str(error))


def _content(read: Read) -> bytes:
    try:
        return read()
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from error


def encode(image: Image.Image, mode: str, encoding: Encoding) -> Encoded:
    """Shrink an image to the size limit and encode it.

    Args:
        image: in mode RGB, without metadata.
        mode: ``raw``, ``jpg``, or ``smart``: whichever suits ``encoding.smart_threshold``.
        encoding: the rest.

    Raises:
        BadImage: it does not fit into a page, or JPEG cannot hold it.
    """
    height, width = area.limited_size(image.height, image.width, encoding.max_resolution)
    if (width, height) != image.size:
        image = Image.fromarray(area.shrink(np.asarray(image), height, width))
    if max(height, width) > MAX_SIDE:
        raise BadImage(
            f"its {width} x {height} pixels are too long, {MAX_SIDE} is the most; "
            f"pass --cfg.max_resolution={MAX_SIDE} or less"
        )
    if mode == "raw":
        stored = Encoded(beton.MODE_RAW, height, width, image.tobytes())
    else:
        stored = Encoded(beton.MODE_JPEG, height, width, jpeg(image, encoding.jpeg_quality))
        if mode == "smart" and 3 * height * width < encoding.smart_threshold * len(stored.data):
            stored = Encoded(beton.MODE_RAW, height, width, image.tobytes())
    if len(stored.data) > encoding.max_bytes:
        side = int((encoding.max_bytes / 3) ** 0.5)  # what fits even as raw pixels
        raise BadImage(
            f"its {len(stored.data):,} bytes ({width} x {height}) do not fit into a page of "
            f"{encoding.max_bytes:,}; pass --cfg.max_resolution={side} or less"
        )
    return stored


def jpeg(image: Image.Image, quality: int) -> bytes:
    """A baseline JPEG, 4:2:0, with restart markers; nothing of the source but its pixels.

    Args:
        image: in mode RGB, without metadata, no side above :data:`MAX_SIDE`.
        quality: 1 to 100, as libjpeg counts it.
    """
    buffer = io.BytesIO()
    image.save(
        buffer,
        "JPEG",
        quality=quality,
        subsampling="4:2:0",
        restart_marker_blocks=restarts.interval(image.width, 16),
    )
    return buffer.getvalue()
