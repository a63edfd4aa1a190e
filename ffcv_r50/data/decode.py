"""Samples to pixels: crop, decode, resize and flip, all in one call of compiled code.

:func:`decode_samples` is what the worker threads of :mod:`ffcv_r50.data.loader` call.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba.core import types

from ffcv_r50.data import jpeg
from ffcv_r50.data.beton import MODE_RAW, Beton
from ffcv_r50.data.compiled import CHECKSUM, njit, njit_cached
from ffcv_r50.data.crops import Window, center_crop, random_crop, random_flip
from ffcv_r50.data.resize import Bitmap, Box, line_size, resize

MAX_PIXELS = 1 << 27
"""Pixels; a decode that needs more is refused."""
MAX_SCANNED = 1 << 31
"""Pixels times scans, likewise: some ten seconds. Encoders make about ten scans; a file of a few
thousand bytes can have hundreds."""


class Sampling(NamedTuple):
    """What is done to a sample, besides decoding it."""

    seed: np.uint64
    epoch: int
    random: bool
    """Random crop and flip (training), or the center crop (evaluation)."""
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip: float
    center_ratio: float
    scaled: bool
    """Decode at 1/2, 1/4 or 1/8 where the window is that much larger than the output."""

    @classmethod
    def center(cls, ratio: float) -> "Sampling":
        """Of an evaluation.

        Args:
            ratio: side of the crop over the image's shorter side.
        """
        return cls(
            seed=np.uint64(0),
            epoch=0,
            random=False,
            crop_scale=(1.0, 1.0),
            crop_ratio=(1.0, 1.0),
            flip=0.0,
            center_ratio=float(ratio),
            scaled=False,
        )


class Stored(NamedTuple):
    """Where the samples lie, as compiled code sees a :class:`~ffcv_r50.data.beton.Beton`."""

    file: int
    """Its descriptor."""
    modes: npt.NDArray[np.uint8]
    heights: npt.NDArray[np.int32]
    widths: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    max_bytes: int
    """Of the largest sample."""
    max_pixels: int
    longest_side: int

    @classmethod
    def of(cls, dataset: Beton) -> "Stored":
        """The arrays of a dataset."""
        return cls(
            dataset.descriptor,
            dataset.modes,
            dataset.heights,
            dataset.widths,
            dataset.offsets,
            dataset.sizes,
            int(dataset.sizes.max()),
            int(np.multiply(dataset.heights, dataset.widths, dtype=np.int64).max()),
            int(max(dataset.heights.max(), dataset.widths.max())),
        )


class Scratch(NamedTuple):
    """The memory that one worker thread needs besides the batch. Untouched pages cost nothing."""

    stored: npt.NDArray[np.uint8]
    jpeg: npt.NDArray[np.uint8]
    pixels: npt.NDArray[np.uint8]
    firsts_y: npt.NDArray[np.int64]
    taps_y: npt.NDArray[np.int64]
    weights_y: npt.NDArray[np.float32]
    firsts_x: npt.NDArray[np.int64]
    taps_x: npt.NDArray[np.int64]
    weights_x: npt.NDArray[np.float32]
    line: npt.NDArray[np.float32]

    @classmethod
    def allocate(cls, stored: Stored, resolution: int) -> "Scratch":
        """Enough for each sample of a dataset at a resolution."""
        return cls(*scratch(stored.max_bytes, stored.max_pixels, stored.longest_side, resolution))


def scratch(max_bytes: int, max_pixels: int, longest_side: int, resolution: int) -> tuple[Any, ...]:
    """The arrays of a :class:`Scratch` for images up to these sizes. Can be compiled."""
    weights = 2 * longest_side + 5 * resolution
    return (
        np.empty(max_bytes, np.uint8),
        np.empty(max_bytes, np.uint8),
        np.empty(4 * min(MAX_PIXELS, max_pixels), np.uint8),
        np.empty(resolution, np.int64),
        np.empty(resolution, np.int64),
        np.empty(weights, np.float32),
        np.empty(resolution, np.int64),
        np.empty(resolution, np.int64),
        np.empty(weights, np.float32),
        np.zeros(line_size(max(longest_side, resolution)), np.float32),
    )


@njit
def scaling(height: int, width: int, resolution: int) -> int:
    """The largest of 1, 2, 4, 8 by which a window can be divided and not be enlarged again.

    On 100 ImageNet photos (longest side 500) it is more than 1 for 43 % of torchvision's crops at
    128 px, 13 % at 160, 1 % at 192; their pixels then differ by 1.6 to 2.2 of 255 on average from
    those of a full decode. Below a factor of 2 the details of the output would be lost.
    """
    for scale in (8, 4, 2):
        if min(height, width) >= scale * resolution:
            return scale
    return 1


NOTHING = Window(0, 0, 0, 0)
UNREAD = 100
"""Status of a sample whose bytes could not be read: the file's fault, not the image's."""

_pread: Any = types.ExternalFunction(
    "pread",
    types.intp(types.int32, types.intp, types.uint64, types.int64),
)


@njit
def read(file: int, begin: int, first: int, count: int, out: Any) -> bool:
    """Read a part of a sample to where it lies in the sample.

    Args:
        file: descriptor.
        begin: of the sample, in the file.
        first: byte of the sample that the part begins with.
        count: bytes.
        out: uint8, filled from ``first`` on.

    Returns:
        Whether all of it could be read and had room.
    """
    if begin < 0 or first < 0 or count < 0 or count > out.size - first:
        return False
    done = 0
    while done < count:
        target = out.ctypes.data + first + done
        got = _pread(file, target, np.uint64(count - done), begin + first + done)
        if got <= 0:
            return False
        done += got
    return True


@njit
def read_header(data: Any, size: tuple[int, int]) -> tuple[int, Any]:
    """Read the header of a sample's JPEG, and refuse what is not the image that the dataset has.

    Args:
        data: uint8, the JPEG.
        size: height and width of the image as the dataset has them.

    Returns:
        Status, and the :class:`~ffcv_r50.data.jpeg.Header`.
    """
    status, header = jpeg.read_header(data)
    if status != jpeg.GOOD:
        return status, header
    if header.height != size[0] or header.width != size[1]:
        return jpeg.WRONG_SIZE, header
    if header.mcu_height == 0 and (
        jpeg.count_scans(data, header) * header.height * header.width > MAX_SCANNED
    ):
        return jpeg.TOO_MANY_SCANS, header
    return jpeg.GOOD, header


@njit
def decode_jpeg(
    handle: int, data: Any, size: tuple[int, int], window: Window, scale: int, scratch: Any
) -> tuple[int, Window]:
    """Decode at least a window of a JPEG.

    Args:
        handle: a :class:`~ffcv_r50.data.jpeg.Decompressor`'s.
        data: uint8 [size], the JPEG.
        size: height and width of the image as the dataset has them.
        window: at full size.
        scale: 1, 2, 4 or 8, see :func:`scaling`.
        scratch: a :class:`Scratch`; the pixels end up in its ``pixels``.

    Returns:
        Status, and the decoded part at this scale.
    """
    status, header = read_header(data, size)
    if status != jpeg.GOOD:
        return status, NOTHING
    part = jpeg.covering(header, window)
    num_bytes = data.size
    shortened = False
    if header.interval > 0:
        status, num_bytes = jpeg.cut(data, header, part, scratch.jpeg)
        if status != jpeg.GOOD:
            return status, NOTHING
        data = scratch.jpeg
    elif part.height < header.height:
        jpeg.shorten(data, header, part.height, scratch.jpeg)
        shortened = True
        data = scratch.jpeg
    height, width = -(-part.height // scale), -(-part.width // scale)
    if 4 * height * width > scratch.pixels.size:
        return jpeg.TOO_LARGE, NOTHING
    if not jpeg.decode(
        handle, data, num_bytes, part.height, part.width, scale, shortened, scratch.pixels
    ):
        return jpeg.LIBRARY, NOTHING
    return jpeg.GOOD, Window(part.top // scale, part.left // scale, height, width)


@njit
def draw_window(sampling: Sampling, view: int, size: tuple[int, int]) -> tuple[Window, bool]:
    """Which window a view shows of its sample, and whether it is mirrored."""
    height, width = size
    if not sampling.random:
        return center_crop(height, width, sampling.center_ratio), False
    seed, epoch = sampling.seed, sampling.epoch
    return (
        random_crop(seed, epoch, view, height, width, sampling.crop_scale, sampling.crop_ratio),
        random_flip(seed, epoch, view, sampling.flip),
    )


@njit
def span(stored: Any, sample: int, window: Window) -> tuple[np.int64, np.int64]:
    """The part of a sample's bytes that a window needs: its first byte, and how many.

    Of raw pixels the rows; of a JPEG all.
    """
    if stored.modes[sample] == MODE_RAW:
        pitch = 3 * np.int64(stored.widths[sample])
        return window.top * pitch, window.height * pitch
    return np.int64(0), np.int64(stored.sizes[sample])


@njit
def show(
    handle: int,
    data: Any,
    raw: bool,
    size: tuple[int, int],
    window: Window,
    flip: bool,
    scaled: bool,
    scratch: Any,
    out: Any,
) -> int:
    """Resize a window of a sample, and decode no more of it than that takes.

    Args:
        handle: see :func:`decode_jpeg`.
        data: uint8, a JPEG; or pixels [height, width, 3], of which the window's rows are looked at.
        raw: it is pixels.
        size: height and width of the image as the dataset has them.
        window, flip: see :func:`draw_window`.
        scaled: see :class:`Sampling`.
        scratch: a :class:`Scratch`.
        out: uint8 [rows, columns, 3], contiguous, filled.

    Returns:
        Status.
    """
    if raw:
        box = Box(float(window.top), float(window.left), float(window.height), float(window.width))
        resize(Bitmap(data, size[0], size[1], 3), box, flip, out, scratch)
        return jpeg.GOOD
    resolution = max(out.shape[0], out.shape[1])
    scale = scaling(window.height, window.width, resolution) if scaled else 1
    status, part = decode_jpeg(handle, data, size, window, scale, scratch)
    if status != jpeg.GOOD:
        return status
    box = Box(
        window.top / scale - part.top,
        window.left / scale - part.left,
        window.height / scale,
        window.width / scale,
    )
    resize(Bitmap(scratch.pixels, part.height, part.width, 4), box, flip, out, scratch)
    return status


def _build(checksum: int):  # type: ignore[no-untyped-def]
    @njit_cached
    def decode_samples(handle, stored, sampling, views, start, scratch, out):  # type: ignore[no-untyped-def]
        if checksum < 0:  # never: it is here to be part of the key of what is kept on disk
            return 0, jpeg.GOOD
        for i in range(start, views.size):
            sample = views[i] & 0xFFFFFFFF
            size = np.int64(stored.heights[sample]), np.int64(stored.widths[sample])
            window, flip = draw_window(sampling, views[i], size)
            raw = stored.modes[sample] == MODE_RAW
            if raw and stored.sizes[sample] != 3 * size[0] * size[1]:
                return i, jpeg.WRONG_SIZE
            first, count = span(stored, sample, window)
            if not read(stored.file, stored.offsets[sample], first, count, scratch.stored):
                return i, UNREAD
            data = scratch.stored[: first + count]
            status = show(handle, data, raw, size, window, flip, sampling.scaled, scratch, out[i])
            if status != jpeg.GOOD:
                return i, status
        return views.size, jpeg.GOOD

    return decode_samples


_decode_samples = _build(CHECKSUM)


def decode_samples(
    handle: int,
    stored: Stored,
    sampling: Sampling,
    views: npt.NDArray[np.int64],
    start: int,
    scratch: Scratch,
    out: npt.NDArray[np.uint8],
) -> tuple[int, int]:
    """Decode samples into a batch, without the GIL.

    Args:
        handle: a :class:`~ffcv_r50.data.jpeg.Decompressor`'s, used by no other thread meanwhile.
        stored: the dataset.
        sampling: crop, flip, decoder.
        views: [n], the sample's index in the low 32 bits, which repetition of it above.
        start: position of the first sample to decode.
        scratch: used by no other thread meanwhile.
        out: [n, resolution, resolution, 3], filled from ``start`` on.

    Returns:
        (n, GOOD), or (position of the first bad sample, its status): :data:`UNREAD`, or see
        :data:`ffcv_r50.data.jpeg.REASONS`.
    """
    return _decode_samples(handle, stored, sampling, views, start, scratch, out)
