"""Samples to pixels: crop, decode, resize and flip, all in one call of compiled code.

:func:`decode_samples` is what the worker threads of :mod:`ffcv_r50.data.loader` call.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ffcv_r50.data import jpeg
from ffcv_r50.data.beton import MODE_RAW, Beton
from ffcv_r50.data.compiled import SOURCES, njit, njit_cached
from ffcv_r50.data.crops import center_crop, random_crop, random_flip
from ffcv_r50.data.resize import line_size, resize

LARGEST = 1 << 27
"""Pixels; a decode that needs more is refused."""


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


class Stored(NamedTuple):
    """Where the samples lie, as compiled code sees a :class:`~ffcv_r50.data.beton.Beton`."""

    bytes: npt.NDArray[np.uint8]
    modes: npt.NDArray[np.uint8]
    heights: npt.NDArray[np.int32]
    widths: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    most_bytes: int
    """Of the largest sample."""
    most_pixels: int
    longest_side: int

    @classmethod
    def of(cls, dataset: Beton) -> "Stored":
        """The arrays of a dataset."""
        plain = np.frombuffer(dataset.bytes, dtype=np.uint8)  # numba knows no memmap
        return cls(
            plain,
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
        longest = max(stored.longest_side, resolution)
        weights = 2 * stored.longest_side + 5 * resolution
        return cls(
            np.empty(stored.most_bytes, np.uint8),
            np.empty(4 * min(LARGEST, stored.most_pixels), np.uint8),
            np.empty(resolution, np.int64),
            np.empty(resolution, np.int64),
            np.empty(weights, np.float32),
            np.empty(resolution, np.int64),
            np.empty(resolution, np.int64),
            np.empty(weights, np.float32),
            np.zeros(line_size(longest), np.float32),
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


@njit
def decode_jpeg(
    handle: int,
    data: Any,
    rows: int,
    columns: int,
    top: int,
    left: int,
    height: int,
    width: int,
    scale: int,
    scratch: Any,
) -> tuple[int, int, int, int, int]:
    """Decode at least a window of a JPEG.

    Args:
        handle: a :class:`~ffcv_r50.data.jpeg.Decompressor`'s.
        data: uint8 [size], the JPEG.
        rows, columns: the image's size as the dataset has it.
        top, left, height, width: the window in pixels.
        scale: 1, 2, 4 or 8, see :func:`scaling`.
        scratch: a :class:`Scratch`; the pixels end up in its ``pixels``.

    Returns:
        (status, rows and columns of the decoded part, row and column where it begins in the image at
        this scale).
    """
    status, frame, h, w, mcu_h, mcu_w, interval, scan = jpeg.read_header(data)
    if status != jpeg.GOOD:
        return status, 0, 0, 0, 0
    if h != rows or w != columns:
        return jpeg.WRONG_SIZE, 0, 0, 0, 0
    first_row = first_column = 0
    size = data.size
    shortened = False
    bottom = h
    if mcu_h > 0:
        y1 = -(-min(h, top + height + jpeg.MARGIN) // mcu_h)
        bottom = min(h, y1 * mcu_h)
    if interval > 0:
        tile_w = mcu_w * interval
        per_row = -(-w // tile_w)
        y0 = max(0, top - jpeg.MARGIN) // mcu_h
        x0 = max(0, left - jpeg.MARGIN) // tile_w
        x1 = -(-min(w, left + width + jpeg.MARGIN) // tile_w)
        if x0 > 0 and w - x0 * tile_w < mcu_w:
            x0 -= 1  # libjpeg interpolates chroma otherwise in an image of so few columns
        total = per_row * -(-h // mcu_h)
        first_row, first_column = y0 * mcu_h, x0 * tile_w
        h, w = bottom - first_row, min(w, x1 * tile_w) - first_column
        status, size = jpeg.cut(
            data, scan, frame, per_row, y0, y1, x0, x1, total, h, w, scratch.jpeg
        )
        if status != jpeg.GOOD:
            return status, 0, 0, 0, 0
        data = scratch.jpeg
    elif bottom < h:
        h, shortened = bottom, True
        jpeg.shorten(data, frame, h, scratch.jpeg)
        data = scratch.jpeg
    decoded_h, decoded_w = -(-h // scale), -(-w // scale)
    if 4 * decoded_h * decoded_w > scratch.pixels.size:
        return jpeg.TOO_LARGE, 0, 0, 0, 0
    if not jpeg.decode(handle, data, size, h, w, scale, shortened, scratch.pixels):
        return jpeg.LIBRARY, 0, 0, 0, 0
    return jpeg.GOOD, decoded_h, decoded_w, first_row // scale, first_column // scale


def _build(sources: int):  # type: ignore[no-untyped-def]
    @njit_cached
    def decode_samples(handle, stored, sampling, samples, start, scratch, out):  # type: ignore[no-untyped-def]
        resolution = out.shape[1] + 0 * sources
        for i in range(start, samples.size):
            sample = samples[i]
            rows, columns = np.int64(stored.heights[sample]), np.int64(stored.widths[sample])
            flip = False
            if sampling.random:
                top, left, height, width = random_crop(
                    sampling.seed,
                    sampling.epoch,
                    sample,
                    rows,
                    columns,
                    sampling.crop_scale,
                    sampling.crop_ratio,
                )
                flip = random_flip(sampling.seed, sampling.epoch, sample, sampling.flip)
            else:
                top, left, height, width = center_crop(rows, columns, sampling.center_ratio)
            begin = stored.offsets[sample]
            data = stored.bytes[begin : begin + stored.sizes[sample]]
            if stored.modes[sample] == MODE_RAW:
                resize(
                    data,
                    3 * columns,
                    3,
                    rows,
                    columns,
                    (float(top), float(left), float(height), float(width)),
                    flip,
                    out[i],
                    scratch,
                )
                continue
            scale = scaling(height, width, resolution) if sampling.scaled else 1
            status, h, w, first_row, first_column = decode_jpeg(
                handle,
                data,
                rows,
                columns,
                top,
                left,
                height,
                width,
                scale,
                scratch,
            )
            if status != jpeg.GOOD:
                return i, status
            resize(
                scratch.pixels,
                4 * w,
                4,
                h,
                w,
                (
                    top / scale - first_row,
                    left / scale - first_column,
                    height / scale,
                    width / scale,
                ),
                flip,
                out[i],
                scratch,
            )
        return samples.size, jpeg.GOOD

    return decode_samples


_decode_samples = _build(SOURCES)


def decode_samples(
    handle: int,
    stored: Stored,
    sampling: Sampling,
    samples: npt.NDArray[np.int64],
    start: int,
    scratch: Scratch,
    out: npt.NDArray[np.uint8],
) -> tuple[int, int]:
    """Decode samples into a batch, without the GIL.

    Args:
        handle: a :class:`~ffcv_r50.data.jpeg.Decompressor`'s, used by no other thread meanwhile.
        stored: the dataset.
        sampling: crop, flip, decoder.
        samples: [n] sample indices.
        start: position of the first sample to decode.
        scratch: used by no other thread meanwhile.
        out: [n, resolution, resolution, 3], filled from ``start`` on.

    Returns:
        (n, GOOD), or (position of the first bad sample, its status): see
        :data:`ffcv_r50.data.jpeg.REASONS`.
    """
    return _decode_samples(handle, stored, sampling, samples, start, scratch, out)
