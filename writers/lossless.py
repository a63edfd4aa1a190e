"""JPEGs stored as they are, to the last pixel: only their entropy coding and their headers change.

A baseline JPEG gets restart markers (:mod:`writers.restarts`), so that a loader need not decode all
of it. A progressive one, and any other that libjpeg-turbo's lossless transform takes (several scans,
arithmetic coding), becomes baseline first. Metadata is dropped, subsampling is kept, gray stays gray
(decoders give it as RGB).
"""

import contextlib
import ctypes
import functools
import io
import struct
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ffcv_r50.data import jpeg, photos
from writers import restarts


class Lossless(NamedTuple):
    """A JPEG with the pixels of another."""

    height: int
    width: int
    data: bytes


def rewrite(content: bytes, longest_side: int, exif_rotate: bool) -> Lossless | None:
    """A JPEG with the same pixels, for a loader to decode in parts.

    Args:
        content: of an image file.
        longest_side: pixels that no side may exceed.
        exif_rotate: images are to be turned as their EXIF orientation says.

    Returns:
        A baseline JPEG with restart markers, or None: it is no JPEG, has to be shrunk or turned, has
        other colors than gray or YCbCr, or is in any way damaged or unusual.
    """
    if not content.startswith(b"\xff\xd8"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content))
            turned = exif_rotate and photos.orientation(image) in photos.UPRIGHT
    except Exception:  # decoding it will say why
        return None
    if turned or max(image.size) > longest_side or image.mode not in ("RGB", "L"):
        return None
    try:
        header = _read(content)
        if not header.baseline:
            # Decoders smooth what is missing of an incomplete progressive JPEG.
            content, original = _transform(content), content
            header = _read(content)
            if not header.baseline or not _same_pixels(content, original):
                return None
        data = _restarted(content, header)
    except (_Unusual, IndexError, struct.error):
        return None
    return Lossless(header.height, header.width, data)


class _Unusual(Exception):
    """A JPEG that is left to a decoder."""


class _Component(NamedTuple):
    """One color of a JPEG."""

    sampling: int
    """Horizontal (upper four bits) and vertical."""
    quantization: int
    dc: int
    ac: int
    """Of each table, which."""


class _Header(NamedTuple):
    """What is needed of a JPEG's header."""

    height: int
    width: int
    baseline: bool
    """Its only scan has all components, and Huffman codes; the rest is read only then."""
    components: list[_Component]
    quantization: dict[int, bytes]
    """Each table as its DQT segment has it: precision and number, then the values."""
    huffman: dict[int, bytes]
    """By class and number, as a DHT segment has them: counts, then symbols."""
    interval: int
    """MCUs between restart markers."""
    scan: int
    """Position of the scan's data."""


def _read(content: bytes) -> _Header:
    """Read a JPEG's segments up to its first scan.

    Raises:
        _Unusual: it has something that baseline and progressive JPEGs in gray or YCbCr do not have.
        IndexError, struct.error: it ends too early.
    """
    quantization: dict[int, bytes] = {}
    huffman: dict[int, bytes] = {}
    frame, frame_marker = b"", 0
    interval = 0
    jfif, adobe = False, None
    for marker, segment, end in _segments(content):
        if marker == 0xDB:
            while segment:
                size = 129 if segment[0] >> 4 else 65
                if len(segment) < size or segment[0] & 15 > 3:
                    raise _Unusual
                quantization[segment[0] & 15] = segment[:size]
                segment = segment[size:]
        elif marker == 0xC4:
            while segment:
                size = 17 + sum(segment[1:17])
                if len(segment) < size or segment[0] not in (0, 1, 2, 3, 16, 17, 18, 19):
                    raise _Unusual
                huffman[segment[0]] = segment[1:size]
                segment = segment[size:]
        elif marker == 0xDD:
            (interval,) = struct.unpack(">H", segment)
        elif marker == 0xE0 and segment.startswith(b"JFIF\0") and len(segment) >= 14:
            jfif = True
        elif marker == 0xEE and segment.startswith(b"Adobe"):
            adobe = segment[11]
        elif 0xC0 <= marker <= 0xCF and marker != 0xCC:  # that one is of arithmetic coding
            if frame:
                raise _Unusual
            frame, frame_marker = segment, marker
        elif marker == 0xDA:
            scan = end
            break
    bits, height, width, count = struct.unpack_from(">BHHB", frame)
    if bits != 8 or not height or not width or count not in (1, 3) or len(frame) != 6 + 3 * count:
        raise _Unusual
    if len(set(frame[6::3])) != count:
        raise _Unusual
    if count == 3 and not jfif and (adobe == 0 or (adobe is None and frame[6::3] == b"RGB")):
        raise _Unusual  # not YCbCr; the rule is libjpeg's
    if frame_marker not in (0xC0, 0xC1) or segment[0] != count:
        return _Header(height, width, False, [], {}, {}, 0, 0)
    if segment[1::2][:count] != frame[6::3] or segment[1 + 2 * count :] != b"\0\x3f\0":
        raise _Unusual
    components = [
        _Component(frame[7 + 3 * i], frame[8 + 3 * i], segment[2 + 2 * i] >> 4, segment[2 + 2 * i] & 15)
        for i in range(count)
    ]  # fmt: skip
    return _Header(height, width, True, components, quantization, huffman, interval, scan)


def _segments(content: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker, content and end of each of a JPEG's segments."""
    at = 2
    while True:
        marker, length = struct.unpack_from(">HH", content, at)
        end = at + 2 + length
        # Neither fill bytes nor markers that have no segment.
        if not 0xFFC0 <= marker <= 0xFFFE or 0xFFD0 <= marker <= 0xFFD9:
            raise _Unusual
        if length < 2 or end > len(content):
            raise _Unusual
        yield marker & 0xFF, content[at + 4 : end], end
        at = end


def _restarted(content: bytes, header: _Header) -> bytes:
    """The baseline JPEG with restart markers and without metadata.

    Raises:
        _Unusual: it is damaged, or uses tables or sampling factors as baseline JPEGs do not.
    """
    components = header.components
    if len(components) == 1:  # its blocks are in rows, whatever its sampling
        components = [components[0]._replace(sampling=0x11)]
    samplings = [divmod(c.sampling, 16) for c in components]
    if not all(h in (1, 2, 4) and v in (1, 2, 4) for h, v in samplings):
        raise _Unusual
    if sum(h * v for h, v in samplings) > 10:  # the most blocks that an MCU may have
        raise _Unusual
    mcu_width = 8 * max(h for h, _ in samplings)
    mcu_height = 8 * max(v for _, v in samplings)
    mcus = -(-header.width // mcu_width) * -(-header.height // mcu_height)
    interval = restarts.interval(header.width, mcu_width)

    try:
        quantization = {i: header.quantization[i] for i in {c.quantization for c in components}}
        dc = {i: header.huffman[i] for i in {c.dc for c in components}}
        ac = {i: header.huffman[0x10 | i] for i in {c.ac for c in components}}
    except KeyError as error:
        raise _Unusual from error
    if max(*dc, *ac) > 1:
        raise _Unusual
    blocks = [
        (i, c.dc, 2 + c.ac, min(i, 1))
        for i, (c, (h, v)) in enumerate(zip(components, samplings, strict=True))
        for _ in range(h * v)
    ]
    scan = restarts.insert(
        np.frombuffer(content, np.uint8),
        header.scan,
        np.array(blocks, np.int64),
        (*_both(dc), *_both(ac)),
        mcus,
        header.interval,
        interval,
    )
    if not scan.size:
        raise _Unusual

    # Values of 16 bits are not baseline. (libjpeg takes them there, other decoders may not.)
    wide = any(table[0] >> 4 for table in quantization.values())
    numbers = range(1, 1 + len(components))
    return b"".join(
        (
            b"\xff\xd8",
            _segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
            *(_segment(0xDB, table) for table in quantization.values()),
            _segment(
                0xC1 if wide else 0xC0,
                struct.pack(">BHHB", 8, header.height, header.width, len(components)),
                *(
                    bytes((n, c.sampling, c.quantization))
                    for n, c in zip(numbers, components, strict=True)
                ),
            ),
            *(
                _segment(0xC4, bytes([i]), restarts.STANDARD_DC[i])
                for i in range(min(2, len(components)))
            ),
            *(_segment(0xC4, bytes([0x10 | i]), table) for i, table in ac.items()),
            _segment(0xDD, struct.pack(">H", interval)),
            _segment(
                0xDA,
                bytes([len(components)]),
                *(
                    bytes((n, min(n - 1, 1) << 4 | c.ac))
                    for n, c in zip(numbers, components, strict=True)
                ),
                b"\0\x3f\0",
            ),
            scan.data,
        )
    )


def _both(tables: dict[int, bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Tables 0 and 1; where an image has only one, that twice."""
    one = next(iter(tables.values()))
    return (
        np.frombuffer(tables.get(0, one), np.uint8),
        np.frombuffer(tables.get(1, one), np.uint8),
    )


def _segment(marker: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content


# ------------------------------------------------------------------- libjpeg-turbo's transform

_COPY_NOTHING = 64
_STOP_ON_WARNING, _LIMIT_SCANS = 8192, 32768


class _Transform(ctypes.Structure):
    """``tjtransform``: an operation (none) and its options."""

    _fields_ = (
        ("region", ctypes.c_int * 4),
        ("operation", ctypes.c_int),
        ("options", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("filter", ctypes.c_void_p),
    )


def _transform(content: bytes) -> bytes:
    """The JPEG with one scan of Huffman codes and the same coefficients.

    Raises:
        _Unusual: libjpeg-turbo warns of it.
    """
    library = jpeg.library()
    data, size = ctypes.c_void_p(), ctypes.c_ulong()
    transform = _Transform(options=_COPY_NOTHING)
    try:
        failed = library.tjTransform(
            ctypes.c_void_p(_transformer()),
            content,
            ctypes.c_ulong(len(content)),
            1,
            ctypes.byref(data),
            ctypes.byref(size),
            ctypes.byref(transform),
            _STOP_ON_WARNING | _LIMIT_SCANS,
        )
        if failed:
            raise _Unusual
        return ctypes.string_at(data, size.value)
    finally:
        library.tjFree(data)


@functools.cache
def _transformer() -> int:
    """One for the process, which has one thread that encodes."""
    library = jpeg.library()
    library.tjInitTransform.restype = ctypes.c_void_p
    handle = library.tjInitTransform()
    if not handle:
        raise MemoryError("libjpeg-turbo could not make a transformer")
    return int(handle)


def _same_pixels(content: bytes, original: bytes) -> bool:
    with contextlib.suppress(photos.BadImage):
        return np.array_equal(photos.decode(content), photos.decode(original))
    return False
