"""Our decoders as operations of FFCV's own pipelines: change one import.

::

    from ffcv_r50.ffcv import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder

They take the arguments of FFCV's classes of the same names, and decode only what a crop needs, as
:mod:`ffcv_r50.data.decode` does, from whatever memory FFCV's loader keeps the file in. Crops are functions of
seed, epoch and sample, whichever thread or process draws them. Read for FFCV 1.0.2; see ``docs/ffcv.md``.
"""

import ctypes
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.state import State
from numba.core import types

from ffcv_r50.data import decode, jpeg
from ffcv_r50.data.beton import MODE_RAW
from ffcv_r50.data.compiled import CHECKSUM, njit, njit_cached
from ffcv_r50.data.decode import Sampling, Scratch, draw_window, show_jpeg, show_pixels
from ffcv_r50.errors import UserError

__all__ = ["CenterCropRGBImageDecoder", "RandomResizedCropRGBImageDecoder"]

LOG = logging.getLogger(__name__)
PIECE = 8
"""Samples that share a decoder of libjpeg-turbo and its memory."""
GRAY = 128

_scratch: Any = njit(decode.scratch)
_open: Any = types.ExternalFunction("tjInitDecompress", types.intp())
_close: Any = types.ExternalFunction("tjDestroy", types.int32(types.intp))


def _build(checksum: int):  # type: ignore[no-untyped-def]
    @njit_cached
    def decode_sample(handle, data, raw, size, sampling, sample, scratch, out):  # type: ignore[no-untyped-def]
        if checksum < 0:
            return jpeg.GOOD
        window, flip = draw_window(sampling, sample, size)
        if not raw:
            return show_jpeg(handle, data, size, window, flip, sampling.scaled, scratch, out)
        if data.size != 3 * size[0] * size[1]:
            return jpeg.WRONG_SIZE
        show_pixels(data, size, window, flip, scratch, out)
        return jpeg.GOOD

    return decode_sample


_decode_sample = _build(CHECKSUM)


@ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)
def _warn(sample: int, status: int) -> None:
    """Say that a sample is a gray image now. Called by compiled code, which has no GIL."""
    reason = jpeg.REASONS.get(status, "libjpeg-turbo refuses it")
    LOG.warning("sample %d cannot be decoded: %s; replaced by a gray image", sample, reason)


class _Epoch(AllocationQuery):  # type: ignore[misc,unused-ignore]
    """Memory of no bytes whose shape is the number of the epoch.

    FFCV compiles an operation once and does not tell it the epoch. It allocates an operation's memory at
    the beginning of each epoch, and only then; compiled code sees the shape. So two epochs never get one
    number, also where the batches of one are still made when the next has begun.
    """

    def __init__(self, decoder: "_Decoder") -> None:
        object.__setattr__(self, "decoder", decoder)
        object.__setattr__(self, "dtype", np.dtype("u1"))

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override,unused-ignore]
        decoder: _Decoder = self.decoder  # type: ignore[attr-defined,unused-ignore]
        epoch = decoder.epoch
        decoder.epoch += 1
        return 0, epoch


class _Decoder(SimpleRGBImageDecoder):  # type: ignore[misc,unused-ignore]
    """What both have in common. FFCV takes for an image's decoder what is derived from this class of its."""

    epoch: int
    """That the next iteration of the loader shows. Counts up by itself; set it to go on with a run."""

    def __init__(self, output_size: tuple[int, int], sampling: Sampling) -> None:
        super().__init__()
        jpeg.library()
        self.output_size = output_size
        """Height and width of the images; may be changed between epochs."""
        self.epoch = 0
        self._sampling = sampling

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[Any, ...]]:
        """As FFCV wants it: the pixels, and the epoch."""
        shape, dtype = (*self.output_size, 3), np.dtype("u1")
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=dtype)
        return state, (AllocationQuery(shape, dtype), _Epoch(self))

    def generate_code(self) -> Callable[..., Any]:
        """As FFCV wants it: what it compiles, with its own number of threads."""
        read, iterator = self.memory_read, Compiler.get_iterator()
        max_pixels = int((self.metadata["height"].astype(int) * self.metadata["width"]).max())
        longest = int(max(self.metadata["height"].max(), self.metadata["width"].max()))
        seed, _, _, crop_scale, crop_ratio, flip, center_ratio, _ = self._sampling
        # numba would compile all anew for each of Python's constants; numpy's have one type.
        random, scaled = np.bool_(self._sampling.random), np.bool_(self._sampling.scaled)

        @njit
        def decode_piece(piece, epoch, batch_indices, images, metadata, storage_state):  # type: ignore[no-untyped-def]
            sampling = Sampling(
                seed, epoch, random, crop_scale, crop_ratio, flip, center_ratio, scaled
            )
            begin, end = piece * PIECE, min(len(batch_indices), (piece + 1) * PIECE)
            most = 0
            for i in range(begin, end):
                field = metadata[batch_indices[i]]
                most = max(most, read(field["data_ptr"], storage_state).size)
            resolution = max(images.shape[1], images.shape[2])
            scratch = Scratch(*_scratch(most, max_pixels, longest, resolution))
            handle = _open()
            for i in range(begin, end):
                field = metadata[batch_indices[i]]
                data = read(field["data_ptr"], storage_state)
                size = np.int64(field["height"]), np.int64(field["width"])
                raw = field["mode"] == MODE_RAW
                sample = np.int64(batch_indices[i])
                status = _decode_sample(
                    handle, data, raw, size, sampling, sample, scratch, images[i]
                )
                if status != jpeg.GOOD:
                    images[i] = GRAY
                    _warn(sample, status)
            _close(handle)

        def decode_batch(batch_indices, memory, metadata, storage_state):  # type: ignore[no-untyped-def]
            images, clock = memory
            epoch = clock.shape[2]
            for piece in iterator(-(-len(batch_indices) // PIECE)):
                decode_piece(piece, epoch, batch_indices, images, metadata, storage_state)
            return images[: len(batch_indices)]

        decode_batch.is_parallel = True  # type: ignore[attr-defined]
        return decode_batch


class RandomResizedCropRGBImageDecoder(_Decoder):
    """A random crop, resized: FFCV's class of this name, repeatable and faster.

    Pixels are those of :class:`ffcv_r50.TrainLoader` for the same seed, epoch and sample. A sample that
    cannot be decoded becomes a gray image and a warning in the log: FFCV's loader would wait for ever
    for a batch that raised an error.

    Args:
        output_size: height and width of the images in pixels.
        scale: share of the image's area that a crop may have.
        ratio: width over height that it may have.
        seed: up to 64 bits; None draws one, so that crops differ from run to run as FFCV's do. With a seed, a
            run that goes on sets :attr:`epoch`, as it sets the loader's ``next_epoch``: else it sees the
            crops of its first epochs again.
        flip: probability of mirroring, in place of FFCV's RandomHorizontalFlip.
        scaled_decode: decode at 1/2, 1/4 or 1/8 where the crop is that much larger than the output.

    Raises:
        UserError: no libjpeg-turbo, or values that make no sense.
    """

    def __init__(
        self,
        output_size: tuple[int, int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        *,
        seed: int | None = None,
        flip: float = 0.0,
        scaled_decode: bool = True,
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise UserError(
                f"scale {scale} or ratio {ratio} is no range; give (low, high), positive, and a scale "
                "of at most 1"
            )
        if not 0 <= flip <= 1:
            raise UserError(f"flip is {flip}; a probability lies between 0 and 1")
        key = int.from_bytes(os.urandom(8), "little") if seed is None else seed & (1 << 64) - 1
        super().__init__(
            output_size,
            Sampling(
                seed=np.uint64(key),
                epoch=0,
                random=True,
                crop_scale=(float(scale[0]), float(scale[1])),
                crop_ratio=(float(ratio[0]), float(ratio[1])),
                flip=float(flip),
                center_ratio=1.0,
                scaled=bool(scaled_decode),
            ),
        )


class CenterCropRGBImageDecoder(_Decoder):
    """The central square, resized: FFCV's class of this name, with the filter of Pillow and torchvision.

    Pixels are those of :class:`ffcv_r50.EvalLoader`.

    Args:
        output_size: height and width of the images in pixels.
        ratio: side of the crop over the image's shorter side.

    Raises:
        UserError: no libjpeg-turbo, or a ratio that makes no sense.
    """

    def __init__(self, output_size: tuple[int, int], ratio: float) -> None:
        if not 0 < ratio <= 1:
            raise UserError(f"ratio is {ratio}; choose one above 0 and up to 1")
        super().__init__(output_size, Sampling.center(ratio))
