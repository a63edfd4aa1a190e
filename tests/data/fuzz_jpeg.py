"""Decode damaged JPEGs between guard pages: ``python fuzz_jpeg.py COUNT SEED``.

Run by ``test_jpeg.py`` in a process of its own, since a read outside a buffer ends it. The JPEG is read
against the end of its memory, or against its beginning; so lie the other scratch memory and the batch.
"""

import ctypes
import io
import mmap
import os
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ffcv_r50.data import jpeg
from ffcv_r50.data.decode import Sampling, Scratch, Stored, decode_samples

Bytes = npt.NDArray[np.uint8]
PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
RESOLUTION = 24


def guarded(size: int) -> Bytes:
    """``size`` bytes, rounded up to pages, with a page before and after that nobody may touch."""
    pages = -(-size // PAGE) + 2
    memory = np.frombuffer(mmap.mmap(-1, pages * PAGE), np.uint8)
    for page in (0, pages - 1):
        address = ctypes.c_void_p(memory.ctypes.data + page * PAGE)
        if LIBC.mprotect(address, ctypes.c_size_t(PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    return memory[PAGE:-PAGE]


def originals() -> list[tuple[bytes, int, int]]:
    """Small JPEGs of every kind, with their heights and widths."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:70, :96]
    waves = 127 + 100 * np.sin(np.stack([x / 9, y / 5, (x + y) / 7], -1))
    pixels = (waves + rng.normal(0, 20, waves.shape)).clip(0, 255).astype(np.uint8)
    color, gray = Image.fromarray(pixels), Image.fromarray(pixels[..., 0])
    kinds: list[tuple[Image.Image, dict[str, Any]]] = [
        (color, {"subsampling": "4:2:0", "restart_marker_blocks": 2}),
        (color, {"subsampling": "4:2:2", "restart_marker_blocks": 2}),
        (color, {"subsampling": "4:2:0", "restart_marker_blocks": 3}),
        (color, {"subsampling": "4:4:4", "restart_marker_blocks": 3}),
        (color, {"subsampling": "4:2:0"}),
        (color, {"progressive": True}),
        (color, {"optimize": True, "restart_marker_rows": 1}),
        (gray, {"restart_marker_blocks": 4}),
        (gray, {}),
        (color.convert("CMYK"), {}),
    ]
    found = []
    for image, settings in kinds:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80, **settings)
        found.append((buffer.getvalue(), image.height, image.width))
    return found


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, cut off, put in, or taken out; more often than not in the header."""
    damaged = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        end = len(damaged)
        if rng.random() < 0.5:
            end = min(end, 700)
        at = int(rng.integers(0, max(1, end)))
        match int(rng.integers(0, 7)):
            case 0:
                damaged[at : at + 1] = bytes([int(rng.integers(256))])
            case 1:
                damaged[at : at + 1] = b"\xff"
            case 2:
                damaged[at : at + 2] = bytes([0xFF, int(rng.integers(0xC0, 0x100))])
            case 3:
                del damaged[at:]
            case 4:
                damaged[at:at] = rng.bytes(int(rng.integers(1, 40)))
            case 5:
                del damaged[at : at + int(rng.integers(1, 40))]
            case 6:
                damaged[at : at + 2] = b"\x00\x00"
    return bytes(damaged)


def main() -> None:
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    rng = np.random.default_rng(seed)
    corpus = originals()
    longest = max(len(data) for data, _, _ in corpus) + 400
    file = os.memfd_create("samples")
    memory, jpeg_scratch, pixels = guarded(longest), guarded(longest), guarded(4 * 70 * 96)
    batch = guarded(RESOLUTION * RESOLUTION * 3)
    out = batch[-RESOLUTION * RESOLUTION * 3 :].reshape(1, RESOLUTION, RESOLUTION, 3)
    decompressor = jpeg.Decompressor()
    crop = Sampling(np.uint64(1), 0, True, (0.08, 1.0), (3 / 4, 4 / 3), 0.5, 1.0, True)
    zero, one = np.zeros(1, np.int64), np.array([1], np.int64)

    def decode(data: bytes, height: int, width: int, epoch: int) -> tuple[int, str]:
        os.ftruncate(file, 0)
        os.pwrite(file, data, 0)
        stored = Stored(
            file, np.zeros(1, np.uint8), one.astype(np.int32) * height,
            one.astype(np.int32) * width, zero, one * len(data), len(data), height * width,
            max(height, width),
        )  # fmt: skip
        scratch = Scratch.allocate(stored, RESOLUTION)._replace(
            # Exactly what Scratch.allocate gives, against a guard page.
            stored=memory[len(memory) - len(data) :] if epoch % 2 else memory[: len(data)],
            jpeg=jpeg_scratch[len(jpeg_scratch) - len(data) :],
            pixels=pixels[len(pixels) - 4 * height * width :],
        )
        _, status = decode_samples(
            decompressor.handle, stored, crop._replace(epoch=epoch), zero, 0, scratch, out
        )
        reason = decompressor.error() if status == jpeg.LIBRARY else jpeg.REASONS.get(status, "")
        return status, reason

    statuses: dict[int, int] = {}
    for i in range(count):
        data, height, width = corpus[i % len(corpus)]
        damaged = damage(data, rng)[:longest]
        status, reason = decode(damaged, height, width, i)
        assert (status == jpeg.GOOD) == (reason == ""), (status, reason)
        statuses[status] = statuses.get(status, 0) + 1
    for data, height, width in corpus[:-1]:  # the decoder itself is still in order
        assert decode(data, height, width, 0) == (jpeg.GOOD, "")
    assert decode(*corpus[-1], 0)[0] == jpeg.LIBRARY  # CMYK
    decompressor.close()
    print(" ".join(f"{status}:{n}" for status, n in sorted(statuses.items())))


if __name__ == "__main__":
    main()
