"""JPEG bytes to pixels, with libjpeg-turbo and only as much of the image as is asked for.

**Restart tiles.** A restart marker every few MCUs (the 16 x 16 pixel units of a 4:2:0 JPEG) lets a
decoder begin there. Where the interval divides the row of MCUs, a window of the image is made of
whole intervals, so :func:`cut` puts together a small ordinary JPEG from just those that cover it: the
header with the new size, the intervals with their markers numbered anew, an end marker. Decoding it
gives the very pixels of the full decode, but for chroma interpolated across its rim, hence the two
pixels of margin. A file is tiled when its bytes say so and nothing else: baseline (SOF0), one
interleaved scan, a DRI segment whose interval divides the row. Writers do well to choose the divisor
of the row nearest to 4.

**Other baseline JPEGs** have to be decoded from their beginning, but not to their end: see
:func:`shorten`.

**Scaled decoding.** libjpeg-turbo can decode to 1/2, 1/4 or 1/8 of the size, which takes less time.

**The accurate DCT** is used throughout, so pixels are those of Pillow and torchvision. Stock FFCV
takes the fast one; it saves 2 % here and is 0.9 of 255 off on average (real photos, quality 90).

All lengths are in bytes, all positions are counted from the first byte of the JPEG. Nothing here
trusts those bytes: they are parsed within their bounds, the size in them must be the dataset's, and
libjpeg-turbo is told how large the buffer is that it writes to.
"""

import contextlib
import ctypes
import functools
import sys
from typing import Any, NamedTuple

import llvmlite.binding
import numpy as np
from numba.core import types

from ffcv_r50.data.compiled import njit
from ffcv_r50.data.crops import Window
from ffcv_r50.errors import UserError

MARGIN = 2
"""Pixels around a window whose chroma reaches into it."""

TJPF_RGBX = 2
TJFLAG_ACCURATEDCT = 4096

# Status of a sample, from compiled code. REASONS says the same in words; for LIBRARY the library does.
GOOD = 0
LIBRARY = 1
NOT_JPEG = 2
TRUNCATED = 3
WRONG_SIZE = 4
RESTARTS = 5
TOO_LARGE = 6
TOO_MANY_SCANS = 7

REASONS = {
    NOT_JPEG: "its bytes are not a JPEG",
    TRUNCATED: "its JPEG ends too early",
    WRONG_SIZE: "its JPEG has another width or height than the dataset says",
    RESTARTS: "its restart markers are damaged",
    TOO_LARGE: "it has more pixels than the loader takes",
    TOO_MANY_SCANS: "it has so many scans that decoding it would take minutes",
}


@functools.cache
def library() -> ctypes.CDLL:
    """libjpeg-turbo's TurboJPEG library (2.x or 3.x), also made known to compiled code.

    Raises:
        UserError: it is not installed.
    """
    files = ("libturbojpeg.so.0", "libturbojpeg.so", "libturbojpeg.dylib")
    folders = (f"{sys.prefix}/lib/", "", "/opt/homebrew/lib/")  # conda, system, Homebrew
    for name in (folder + file for folder in folders for file in files):
        with contextlib.suppress(OSError, AttributeError):
            found = ctypes.CDLL(name)
            found.tjInitDecompress.restype = ctypes.c_void_p
            found.tjInitDecompress.argtypes = []
            found.tjDestroy.argtypes = [ctypes.c_void_p]
            found.tjGetErrorStr2.restype = ctypes.c_char_p
            found.tjGetErrorStr2.argtypes = [ctypes.c_void_p]
            llvmlite.binding.load_library_permanently(name)
            return found
    raise UserError(
        "libturbojpeg is not installed; install Debian's libturbojpeg0 or conda's libjpeg-turbo"
    )


class Decompressor:
    """A decoder of libjpeg-turbo, for one thread at a time.

    Raises:
        UserError: the library is not installed.
        MemoryError: the library has no memory for it.
    """

    def __init__(self) -> None:
        self.handle = int(library().tjInitDecompress() or 0)
        """Address of the decoder, for compiled code."""
        if not self.handle:
            raise MemoryError("libjpeg-turbo could not make a decoder")

    def error(self) -> str:
        """What the library said about the last image, which it could not decode."""
        return str(library().tjGetErrorStr2(self.handle).decode(errors="replace"))

    def close(self) -> None:
        """Free the decoder."""
        library().tjDestroy(self.handle)
        self.handle = 0


# Symbols, not addresses: compiled code that is kept on disk is linked anew in each process.
_decompress: Any = types.ExternalFunction(
    "tjDecompress2",
    types.int32(
        types.intp,  # decoder
        types.intp,  # JPEG
        types.uint64,  # its size
        types.intp,  # pixels
        types.int32,  # width they have room for
        types.int32,  # bytes from row to row
        types.int32,  # height they have room for
        types.int32,  # format
        types.int32,  # flags
    ),
)
memchr: Any = types.ExternalFunction("memchr", types.intp(types.intp, types.int32, types.uint64))
memcpy: Any = types.ExternalFunction("memcpy", types.intp(types.intp, types.intp, types.uint64))

_strstr: Any = types.ExternalFunction("strstr", types.intp(types.intp, types.intp))
_error: Any = types.ExternalFunction("tjGetErrorStr2", types.intp(types.intp))
_LEFT_OVER = np.frombuffer(b"extraneous bytes before marker\0", np.uint8)


@njit
def _u8(data: Any, at: int) -> int:
    return np.int64(data[at])  # type: ignore[return-value]


@njit
def _u16(data: Any, at: int) -> int:
    return _u8(data, at) << 8 | _u8(data, at + 1)


@njit
def _set_u16(out: Any, at: int, value: int) -> None:
    out[at] = value >> 8
    out[at + 1] = value & 255


class Header(NamedTuple):
    """What a JPEG says of itself before its scan."""

    height: int
    """In pixels, as all sizes here."""
    width: int
    mcu_height: int
    """0 where the JPEG is not baseline with one interleaved scan; it can only be decoded whole."""
    mcu_width: int
    interval: int
    """MCUs in a restart interval where those divide the row, so that the JPEG is tiled; else 0."""
    frame: int
    """Position of the frame's height, and of its width behind it."""
    scan: int
    """Position of the scan's data."""


NO_HEADER = Header(0, 0, 0, 0, 0, 0, 0)


@njit
def read_header(data: Any) -> tuple[int, Header]:
    """Read a JPEG's markers up to its first scan.

    Args:
        data: uint8 [size], the JPEG.

    Returns:
        Status and header.
    """
    frame = height = width = mcu_height = mcu_width = interval = components = 0
    baseline = False
    size = data.size
    if size < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return NOT_JPEG, NO_HEADER
    at = 2
    while True:
        if at + 4 > size:
            return TRUNCATED, NO_HEADER
        if data[at] != 0xFF:
            return NOT_JPEG, NO_HEADER
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        length = _u16(data, at + 2)
        end = at + 2 + length
        if end > size:
            return TRUNCATED, NO_HEADER
        if length < 2 or marker == 0x00 or marker == 0x01 or 0xD0 <= marker <= 0xD9:
            return NOT_JPEG, NO_HEADER
        if 0xC0 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
            components = _u8(data, at + 9) if length >= 8 else 0
            if frame or components == 0 or length != 8 + 3 * components:
                return NOT_JPEG, NO_HEADER
            frame = at + 5
            height, width = _u16(data, frame), _u16(data, frame + 2)
            baseline = marker == 0xC0
            for c in range(components):
                sampling = _u8(data, at + 11 + 3 * c)
                mcu_width = max(mcu_width, 8 * (sampling >> 4))
                mcu_height = max(mcu_height, 8 * (sampling & 15))
            if components == 1:
                mcu_height = mcu_width = 8
        elif marker == 0xDD:
            if length != 4:
                return NOT_JPEG, NO_HEADER
            interval = _u16(data, at + 4)
        elif marker == 0xDA:
            if frame == 0 or length < 3:
                return NOT_JPEG, NO_HEADER
            if not baseline or data[at + 4] != components or mcu_height == 0 or mcu_width == 0:
                return GOOD, Header(height, width, 0, 0, 0, frame, end)
            if interval and (-(-width // mcu_width)) % interval:
                interval = 0
            return GOOD, Header(height, width, mcu_height, mcu_width, interval, frame, end)
        at = end


@njit
def count_scans(data: Any, header: Header) -> int:
    """Scans of a JPEG; a progressive one repeats all its pixels in each, which may have no bytes."""
    scans, at, size = 1, header.scan, data.size
    while at + 1 < size:
        found = memchr(data.ctypes.data + at, 0xFF, np.uint64(size - at - 1))
        if found == 0:
            break
        at = found - data.ctypes.data + 1
        if data[at] == 0xDA:
            scans += 1
    return scans


@njit
def covering(header: Header, window: Window) -> Window:
    """The smallest part of a JPEG that gives a window's pixels as they are in the whole.

    Returns:
        Whole tiles; of a JPEG that is not tiled the rows down to the window's last, or all of them.
    """
    if header.mcu_height == 0:
        return Window(0, 0, header.height, header.width)
    rows = -(-min(header.height, window.top + window.height + MARGIN) // header.mcu_height)
    bottom = min(header.height, rows * header.mcu_height)
    if header.interval == 0:
        return Window(0, 0, bottom, header.width)
    tile_width = header.mcu_width * header.interval
    top = max(0, window.top - MARGIN) // header.mcu_height * header.mcu_height
    left = max(0, window.left - MARGIN) // tile_width * tile_width
    columns = -(-min(header.width, window.left + window.width + MARGIN) // tile_width)
    right = min(header.width, columns * tile_width)
    if left > 0 and header.width - left < header.mcu_width:
        left -= tile_width  # libjpeg interpolates chroma otherwise in an image of so few columns
    return Window(top, left, bottom - top, right - left)


@njit
def cut(data: Any, header: Header, part: Window, out: Any) -> tuple[int, int]:
    """Put together the JPEG of some rows and columns of restart intervals.

    Args:
        data: uint8 [size], a tiled JPEG.
        header: of it.
        part: whole tiles, see :func:`covering`.
        out: uint8, at least as long as ``data``; filled.

    Returns:
        Status, and size of the new JPEG.
    """
    # The same in restart intervals.
    tile_width = header.mcu_width * header.interval
    top, bottom = part.top // header.mcu_height, -(-(part.top + part.height) // header.mcu_height)
    left, right = part.left // tile_width, -(-(part.left + part.width) // tile_width)
    per_row = -(-header.width // tile_width)
    total = per_row * -(-header.height // header.mcu_height)

    source, target = data.ctypes.data, out.ctypes.data
    size = data.size
    memcpy(target, source, np.uint64(header.scan))
    _set_u16(out, header.frame, part.height)
    _set_u16(out, header.frame + 2, part.width)
    at = to = header.scan  # where the interval begins, there and here
    row = column = written = 0
    for k in range(total):
        end = at
        while True:  # a marker is 0xFF and not 0x00
            found = memchr(source + end, 0xFF, np.uint64(size - end))
            if found == 0:
                return TRUNCATED, 0
            end = found - source
            if end + 1 >= size:
                return TRUNCATED, 0
            if data[end + 1] != 0:
                break
            end += 2
        marker = data[end + 1]
        if marker != (0xD0 + (k & 7) if k < total - 1 else 0xD9):
            return RESTARTS, 0
        if top <= row and left <= column < right:
            memcpy(target + to, source + at, np.uint64(end - at))
            to += end - at
            out[to] = 0xFF
            out[to + 1] = 0xD0 + (written & 7)
            to += 2
            written += 1
        at = end + 2
        column += 1
        if column == per_row:
            column = 0
            row += 1
            if row == bottom:
                break
    out[to - 1] = 0xD9
    return GOOD, to


@njit
def shorten(data: Any, header: Header, height: int, out: Any) -> None:
    """Copy a JPEG of one scan and say that it has fewer rows. Decoding it ends after those.

    Args:
        data: uint8 [size], the JPEG.
        header: of it.
        height: of the new JPEG, in pixels.
        out: uint8, at least as long as ``data``; filled.
    """
    memcpy(out.ctypes.data, data.ctypes.data, np.uint64(data.size))
    _set_u16(out, header.frame, height)


@njit
def decode(
    handle: int,
    data: Any,
    size: int,
    height: int,
    width: int,
    scale: int,
    shortened: bool,
    pixels: Any,
) -> bool:
    """Decode a JPEG to four bytes a pixel (red, green, blue, padding).

    Args:
        handle: a :class:`Decompressor`'s.
        data: uint8, begins with the JPEG.
        size: bytes of the JPEG.
        height, width: of the JPEG, in pixels.
        scale: 1, 2, 4 or 8, the size is divided by it and rounded up.
        shortened: the JPEG comes from :func:`shorten`.
        pixels: uint8, flat; room for the rows one after another.

    Returns:
        Whether it succeeded without a warning.
    """
    h, w = -(-height // scale), -(-width // scale)
    done = _decompress(
        handle, data.ctypes.data, np.uint64(size), pixels.ctypes.data, w, 4 * w, h, TJPF_RGBX,
        TJFLAG_ACCURATEDCT,
    )  # fmt: skip
    if done != 0 and shortened:
        # libjpeg warns of the rows that it does not read. It keeps its first warning: had it met
        # any other in the rows before, it would say that one.
        return bool(_strstr(_error(handle), _LEFT_OVER.ctypes.data) != 0)
    return bool(done == 0)
