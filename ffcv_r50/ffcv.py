"""Our decoders as operations of FFCV's own pipelines: change one import.

::

    from ffcv_r50.ffcv import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder

They take the arguments of FFCV's classes of the same names, and decode only what a crop needs, as
:mod:`ffcv_r50.data.decode` does, from whatever memory FFCV's loader keeps the file in. Crops are functions of
seed, epoch and sample, whichever thread or process draws them. Read for FFCV 1.0.2; see ``docs/ffcv.md``.

**FFCV compiles nothing of ours.** It compiles a pipeline at the first batch, in a thread of its own, and an
error there leaves the consumer waiting for ever. So the whole decoding of a sample is one C function of numbers
and addresses, compiled before there is a loader and kept on disk; what FFCV compiles is a loop that calls it.
"""

import ctypes
import functools
import logging
import operator
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.memory_managers import OSCacheManager
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.state import State
from numba.core import types
from numba.np.numpy_support import carray

from ffcv_r50.data import decode, jpeg
from ffcv_r50.data.beton import MODE_RAW
from ffcv_r50.data.compiled import CHECKSUM, cfunc_cached, njit
from ffcv_r50.data.decode import Sampling, Scratch, draw_window, show
from ffcv_r50.errors import UserError

__all__ = ["CenterCropRGBImageDecoder", "RandomResizedCropRGBImageDecoder"]

LOG = logging.getLogger(__name__)
GRAY = 128

_scratch: Any = njit(decode.scratch)
_open: Any = types.ExternalFunction("tjInitDecompress", types.intp())
_close: Any = types.ExternalFunction("tjDestroy", types.int32(types.intp))
_DECODE_SAMPLE = types.int64(
    types.uint64, types.int64, types.int64,  # seed, epoch, sample
    types.boolean, *[types.float64] * 6, types.boolean,  # what else Sampling has
    types.voidptr, types.int64, types.boolean, types.int64, types.int64,  # what is stored
    types.voidptr, types.int64, types.int64,  # what is shown
)  # fmt: skip


def _compile_reader(manager: OSCacheManager) -> Any:
    """FFCV's, for a file in memory that cannot be written to.

    FFCV 1.0.2 says so by assigning to numba's type of contiguous bytes, of which there is one for the whole
    process and which is a key of each function that is compiled for such arrays. Those functions cannot be
    looked up any more; what calls them does not compile (KeyError).
    """
    stored, places = types.Array(types.uint8, 1, "C", readonly=True), types.uint64[::1]

    def read(address, mem_state):  # type: ignore[no-untyped-def]
        size = mem_state[2][np.searchsorted(mem_state[1], address)]
        return mem_state[0][address : address + size]

    return Compiler.compile(read, stored(types.uint64, types.Tuple([stored, places, places])))


OSCacheManager.compile_reader = _compile_reader


@functools.cache
def _decode_sample() -> Any:
    """The compiled :func:`decode_sample`. Raises UserError: no libjpeg-turbo."""
    jpeg.library()
    return _build(CHECKSUM)


def _build(checksum: int):  # type: ignore[no-untyped-def]
    @cfunc_cached(_DECODE_SAMPLE)
    def decode_sample(  # type: ignore[no-untyped-def]
        seed, epoch, sample,
        random, low_scale, high_scale, low_ratio, high_ratio, flip, center_ratio, scaled,
        data, num_bytes, raw, height, width,
        image, rows, columns,
    ):  # fmt: skip # pragma: no cover
        """Show a sample as one of :class:`~ffcv_r50.data.decode.Sampling`, or all gray if it is bad.

        Args:
            data, num_bytes: of the sample.
            raw: it is pixels, not a JPEG.
            height, width: of its image.
            image: uint8 [rows, columns, 3], filled.

        Returns:
            Status.
        """
        if checksum < 0:  # never: it is here to be part of the key of what is kept on disk
            return jpeg.GOOD
        scale, ratio = (low_scale, high_scale), (low_ratio, high_ratio)
        sampling = Sampling(seed, epoch, random, scale, ratio, flip, center_ratio, scaled)
        window, mirrored = draw_window(sampling, sample, (height, width))
        stored = carray(data, (num_bytes,), np.uint8)
        out = carray(image, (rows, columns, 3), np.uint8)
        resolution = max(rows, columns)
        scratch = Scratch(*_scratch(num_bytes, height * width, max(height, width), resolution))
        status = jpeg.WRONG_SIZE
        if min(height, width) > 0 and (not raw or num_bytes == 3 * height * width):
            handle = _open()
            status = show(
                handle, stored, raw, (height, width), window, mirrored, scaled, scratch, out
            )
            _close(handle)
        if status != jpeg.GOOD:
            out[:] = GRAY
        return status

    return decode_sample


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
        self.output_size = output_size
        """Height and width of the images; may be changed between epochs."""
        self.epoch = 0
        self._sampling = sampling
        self._decode_sample = _decode_sample()

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[Any, ...]]:
        """As FFCV wants it: the pixels, and the epoch."""
        try:
            rows, columns = (operator.index(side) for side in self.output_size)
        except (TypeError, ValueError):
            rows = columns = 0
        if min(rows, columns) < 1:
            raise UserError(
                f"output_size is {self.output_size}; give height and width in pixels, as (224, 224)"
            )
        shape, dtype = (rows, columns, 3), np.dtype("u1")
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=dtype)
        return state, (AllocationQuery(shape, dtype), _Epoch(self))

    def generate_code(self) -> Callable[..., Any]:
        """As FFCV wants it: what it compiles, with its own number of threads."""
        read, iterator = self.memory_read, Compiler.get_iterator()
        decode_sample = self._decode_sample.ctypes
        sampling = self._sampling
        seed, random, flip = int(sampling.seed), sampling.random, sampling.flip
        low_scale, high_scale = sampling.crop_scale
        low_ratio, high_ratio = sampling.crop_ratio
        center_ratio, scaled = sampling.center_ratio, sampling.scaled

        def decode_batch(batch_indices, memory, metadata, storage_state):  # type: ignore[no-untyped-def]
            images, clock = memory
            epoch = clock.shape[2]
            for i in iterator(len(batch_indices)):
                sample = int(batch_indices[i])
                field = metadata[sample]
                data = read(field["data_ptr"], storage_state)
                image = images[i]
                status = decode_sample(
                    seed, epoch, sample,
                    random, low_scale, high_scale, low_ratio, high_ratio, flip, center_ratio, scaled,
                    data.ctypes.data, data.size,
                    field["mode"] == MODE_RAW, int(field["height"]), int(field["width"]),
                    image.ctypes.data, image.shape[0], image.shape[1],
                )  # fmt: skip
                if status != jpeg.GOOD:
                    _warn(sample, status)
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

    Pixels are those of :class:`ffcv_r50.EvalLoader`. Bad samples become gray, as in
    :class:`RandomResizedCropRGBImageDecoder`.

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
