"""JPEGs that keep their pixels: what is kept, what is not, and what damaged bytes do."""

import ctypes
import gc
import io
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder
from ffcv.loader import Loader, OrderOption
from PIL import Image, ImageOps

from ffcv_r50.data import beton, jpeg
from ffcv_r50.data.loader import TrainLoader
from tests.data.conftest import encode, make_image, write_beton
from tests.data.fuzz_jpeg import damage, originals
from tests.writers.test_images import encoding, exif
from writers import images, lossless, pool, writing
from writers.beton_writer import BetonWriter
from writers.config import Writing
from writers.restarts import STANDARD_DC

Pixels = npt.NDArray[np.uint8]


def by_pillow(content: bytes) -> Pixels:
    """What torchvision's ImageFolder gives."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def stored(content: bytes, mode: str = "keep", **changes: Any) -> images.Encoded | images.Failed:
    (result,) = images.encode_chunk([(lambda: content, mode)], encoding(**changes))
    return result


def smooth(height: int = 75, width: int = 110, channels: int = 3) -> Pixels:
    return make_image(height, width, seed=3, channels=channels)


def by_turbojpeg(subsampling: int) -> bytes:
    """A JPEG as Pillow does not write it; the numbers are TurboJPEG's."""
    pixels = smooth()
    library = jpeg.library()
    library.tjInitCompress.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(library.tjInitCompress())
    data, size = ctypes.c_void_p(), ctypes.c_ulong()
    height, width, _ = pixels.shape
    failed = library.tjCompress2(
        handle, pixels.tobytes(), width, 0, height, 0, ctypes.byref(data), ctypes.byref(size),
        subsampling, 90, 0,
    )  # fmt: skip
    assert not failed
    content = ctypes.string_at(data, size.value)
    library.tjFree(data)
    library.tjDestroy(handle)
    return content


def arithmetic() -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TJ_ARITHMETIC", "1")
        content = by_turbojpeg(2)
    assert b"\xff\xc9" in content
    return content


def segments(content: bytes) -> dict[bytes, bytes]:
    """A JPEG's segments up to its scan, by marker, and the scan without the end marker."""
    found: dict[bytes, bytes] = {}
    at = 2
    while b"\xff\xda" not in found:
        end = at + 2 + struct.unpack_from(">H", content, at + 2)[0]
        marker = content[at : at + 2]
        found[marker] = found.get(marker, b"") + content[at:end]
        at = end
    return found | {b"": content[at:-2]}


def several_scans() -> bytes:
    """A baseline JPEG with one scan after the other for its colors."""
    grays = [segments(encode(smooth()[..., i : i + 1])) for i in range(3)]
    frame = grays[0][b"\xff\xc0"][:9] + b"\3\1\x11\0\2\x11\0\3\x11\0"
    out = b"\xff\xd8" + grays[0][b"\xff\xdb"] + frame.replace(b"\0\x0b", b"\0\x11", 1)
    out += grays[0][b"\xff\xc4"]
    for i, gray in enumerate(grays, 1):
        out += b"\xff\xda\0\x08\1" + bytes([i]) + b"\0\0\x3f\0" + gray[b""]
    return out + b"\xff\xd9"


def wide_quantization() -> bytes:
    """16 bits for each of the quantization steps, some of them more than eight."""
    content = encode(smooth())
    tables = segments(content)[b"\xff\xdb"]
    wide = b""
    for at in (0, 69):
        values = b"".join(struct.pack(">H", 5 * value) for value in tables[at + 5 : at + 69])
        wide += b"\xff\xdb\0\x83" + bytes([0x10 | tables[at + 4]]) + values
    return content.replace(tables, wide).replace(b"\xff\xc0", b"\xff\xc1")


def without_jfif(content: bytes, *instead: bytes) -> bytes:
    assert content[2:6] == b"\xff\xe0\0\x10"
    return content[:2] + b"".join(instead) + content[20:]


def adobe(transform: int) -> bytes:
    return b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])


def board() -> Pixels:
    """Blocks of black and of white, for the largest differences from one to the next."""
    return np.kron(np.eye(6, dtype=np.uint8) * 255, np.ones((8, 8), np.uint8))[..., None]


KEPT: dict[str, Callable[[], bytes]] = {
    "4:2:0": lambda: encode(smooth()),
    "4:2:2": lambda: encode(smooth(), subsampling="4:2:2"),
    "4:4:4": lambda: encode(smooth(), subsampling="4:4:4"),
    "4:4:0": lambda: by_turbojpeg(4),
    "4:1:1": lambda: by_turbojpeg(5),
    "gray": lambda: encode(smooth(channels=1)),
    "gray that says 2x2": lambda: encode(smooth(channels=1)).replace(b"\1\1\x11\0", b"\1\1\x22\0"),
    "quality 1": lambda: encode(smooth(), quality=1),
    "quality 100": lambda: encode(smooth(), quality=100, subsampling="4:4:4"),
    "noise": lambda: encode(
        np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), quality=100
    ),
    "board": lambda: encode(board(), quality=100, optimize=True),
    "optimized": lambda: encode(smooth(), optimize=True),
    "16-bit steps": wide_quantization,
    "progressive": lambda: encode(smooth(), progressive=True),
    "progressive gray": lambda: encode(smooth(channels=1), progressive=True),
    "progressive 4:4:4": lambda: encode(smooth(), subsampling="4:4:4", progressive=True),
    "progressive with restarts": lambda: encode(smooth(), interval=5, progressive=True),
    "arithmetic": arithmetic,
    "several scans": several_scans,
    "restarts": lambda: encode(smooth(), interval=3),
    "a restart each MCU": lambda: encode(smooth(), interval=1, optimize=True),
    "restarts in rows": lambda: encode(smooth(), restart_marker_rows=1),
    "1x1": lambda: encode(smooth(1, 1)),
    "1x1 gray": lambda: encode(smooth(1, 1, 1)),
    "8x8": lambda: encode(smooth(8, 8)),
    "16x17": lambda: encode(smooth(16, 17)),
    "a row": lambda: encode(smooth(1, 300)),
    "a column": lambda: encode(smooth(300, 1)),
    "without JFIF": lambda: without_jfif(encode(smooth())),
    "Adobe YCbCr": lambda: without_jfif(encode(smooth()), adobe(1)),
    "JFIF and Adobe RGB": lambda: encode(smooth()).replace(b"\xff\xdb", adobe(0) + b"\xff\xdb", 1),
    "metadata": lambda: encode(smooth(), comment=b"secret", exif=exif(6), icc_profile=b"icc"),
    "garbage behind": lambda: encode(smooth()) + b"\0garbage" * 99,
}
"""Each way to write a JPEG that is kept."""


@pytest.fixture(scope="module")
def kept() -> dict[str, tuple[bytes, images.Encoded]]:
    """Those JPEGs, and what is stored of them."""
    found = {}
    for name, make in KEPT.items():
        content = make()
        result = stored(content)
        assert isinstance(result, images.Encoded), name
        assert result.kept, name
        found[name] = content, result
    return found


Kept = dict[str, tuple[bytes, images.Encoded]]


def test_pixels_are_those_of_the_source(kept: Kept) -> None:
    for name, (content, result) in kept.items():
        pixels = by_pillow(content)
        np.testing.assert_array_equal(by_pillow(result.data), pixels, err_msg=name)
        assert (result.mode, result.height, result.width) == (beton.MODE_JPEG, *pixels.shape[:2])
        for trace in (b"secret", b"Exif", b"ICC_PROFILE", b"garbage", b"Adobe"):
            assert trace not in result.data, name


def test_the_loader_takes_parts_of_them(kept: Kept, tmp_path: Path) -> None:
    """Random crops of each, against those of the raw pixels of the source."""
    tiled = [result.data for _, result in kept.values()]
    for name, data in zip(kept, tiled, strict=True):
        status, header = jpeg.read_header(np.frombuffer(data, np.uint8))
        assert status == jpeg.GOOD
        # Steps of more than eight bits are not baseline.
        assert (header.interval == 0) == (name == "16-bit steps"), name
    raw = [by_pillow(content) for content, _ in kept.values()]
    batches = []
    files: list[list[bytes] | list[Pixels]] = [tiled, raw]
    for i, samples in enumerate(files):
        dataset = write_beton(tmp_path / f"{i}.beton", samples)
        loader = TrainLoader(
            dataset, seed=1, batch_size=len(raw), micro_batch_size=len(raw), repeats=1,
            scaled_decode=False,
        )  # fmt: skip
        crops = []
        for epoch in range(20):
            with loader.epoch(epoch, 32) as epoch_batches:
                crops += [batch.images.numpy().copy() for batch in epoch_batches]
        batches.append(np.stack(crops))
    assert batches[0].shape == (20, len(raw), 32, 32, 3)
    np.testing.assert_array_equal(batches[0], batches[1])


@pytest.mark.filterwarnings("ignore")
def test_stock_ffcv_reads_the_same_pixels(kept: Kept, tmp_path: Path) -> None:
    """Its decoder is another than Pillow's, so: the same of the source and of what is stored."""
    path = tmp_path / "x.beton"
    with open(path, "wb") as file:
        writer = BetonWriter(file, 2 * len(kept))
        for content, result in kept.values():
            for data in (content, result.data):
                writer.add(beton.MODE_JPEG, result.height, result.width, data, 0)
        writer.finish()
    loader = Loader(
        str(path),
        batch_size=2 * len(kept),
        num_workers=1,
        os_cache=True,
        order=OrderOption.SEQUENTIAL,
        pipelines={
            "image": [CenterCropRGBImageDecoder((48, 48), 1.0)],
            "label": [IntDecoder()],
        },
    )
    (batch,) = iter(loader)
    np.testing.assert_array_equal(batch[0][::2], batch[0][1::2])
    assert np.std(batch[0][0]) > 10
    with warnings.catch_warnings():  # FFCV leaves its files to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        del loader, batch
        gc.collect()


def incomplete() -> bytes:
    """A progressive JPEG without its last scan, which decoders smooth."""
    content = encode(smooth(), progressive=True)
    return content[: content.rindex(b"\xff\xda")] + b"\xff\xd9"


def cmyk() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(smooth()).convert("CMYK").save(buffer, "JPEG")
    return buffer.getvalue()


def rgb() -> bytes:
    return encode(smooth(), subsampling="4:4:4", keep_rgb=True)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(smooth()).save(buffer, "PNG")
    return buffer.getvalue()


ENCODED: dict[str, Callable[[], bytes]] = {
    "RGB": rgb,
    "RGB by its names": lambda: rgb().replace(adobe(0), b""),
    "CMYK": cmyk,
    "YCCK": lambda: cmyk().replace(adobe(0), adobe(2)),
    "PNG": png,
    "incomplete progressive": incomplete,
    "bytes before the end marker": lambda: encode(smooth())[:-2] + b"\0\0\xff\xd9",
    "zeros in its middle": lambda: encode(smooth())[:900] + bytes(99) + encode(smooth())[999:],
    "a size that has no meaning": lambda: encode(smooth()).replace(
        STANDARD_DC[0], STANDARD_DC[0][:-1] + b"\xff"
    ),
    "a scan too many": lambda: encode(smooth())[:-2] + encode(smooth())[-900:],
    "12 bits": lambda: encode(smooth()).replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"),
    "a table of 4 bytes": lambda: encode(smooth()).replace(
        b"\xff\xdb", b"\xff\xdb\0\6\0\1\1\1\xff\xdb", 1
    ),
    "no height": lambda: encode(smooth()).replace(b"\x08\0\x4b\0\x6e", b"\x08\0\0\0\x6e"),
    "a color too many": lambda: encode(smooth()).replace(b"\3\1\x22\0", b"\4\1\x22\0"),
    "no tables": lambda: encode(smooth()).replace(b"\xff\xc4", b"\xff\xfe"),
    "no steps": lambda: encode(smooth()).replace(b"\xff\xdb", b"\xff\xfe"),
    "cut": lambda: encode(smooth())[:1500],
    "without its end": lambda: encode(smooth())[:-1],
    "its beginning": lambda: encode(smooth())[:25],
    "lost restart": lambda: re.sub(rb"\xff\xd2", b"", encode(smooth(), interval=3)),
}
"""JPEGs that are left to the decoder, whatever that makes of them."""


@pytest.mark.parametrize("name", ENCODED)
def test_the_others_are_stored_as_with_jpg(name: str) -> None:
    content = ENCODED[name]()
    assert stored(content) == stored(content, "jpg")


def test_what_is_too_large_is_encoded() -> None:
    content = encode(smooth(100, 120), quality=100)
    assert stored(content, max_resolution=120).kept  # type: ignore[union-attr]
    too_small: list[dict[str, Any]] = [{"max_resolution": 119}, {"max_bytes": len(content) // 2}]
    for limits in too_small:
        result = stored(content, **limits)
        assert result == stored(content, "jpg", **limits)
        assert isinstance(result, images.Encoded)


@pytest.mark.parametrize("orientation", [1, 6, 9])
def test_what_is_to_be_turned_is_encoded(orientation: int) -> None:
    content = encode(smooth(), exif=exif(orientation))
    result = stored(content, exif_rotate=True)
    assert isinstance(result, images.Encoded)
    assert result.kept == (orientation != 6)
    with Image.open(io.BytesIO(content)) as image:
        upright = ImageOps.exif_transpose(image)
    assert (result.width, result.height) == upright.size


def test_damaged_bytes_are_judged_as_with_jpg() -> None:
    """What is kept decodes to what Pillow makes of the damaged bytes; all else is as with ``jpg``."""
    rng = np.random.default_rng(0)
    corpus = [content for content, _, _ in originals()]
    kept = 0
    for i in range(2500):
        content = damage(corpus[i % len(corpus)], rng)
        result = stored(content)
        if isinstance(result, images.Encoded) and result.kept:
            kept += 1
            np.testing.assert_array_equal(by_pillow(result.data), by_pillow(content))
        else:
            assert result == stored(content, "jpg")
    assert 100 < kept < 1000


def test_a_file_counts_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("a.jpg", encode(smooth())), ("b.png", png()), ("c.jpg", rgb())):
        (tmp_path / "class").mkdir(exist_ok=True)
        (tmp_path / "class" / name).write_bytes(content)
    monkeypatch.setattr(
        pool, "ordered_map", lambda function, chunks, _: (function(*c) for c in chunks)
    )
    path = tmp_path / "x.beton"
    writing.write(Writing(data_dir=str(tmp_path), write_path=str(path), write_mode="keep"))
    assert "(0 raw, 3 JPEG, 1 of them kept)" in capsys.readouterr().out
    dataset = beton.Beton(path)
    assert dataset.sidecar is not None
    assert dataset.sidecar.kept == 1
    np.testing.assert_array_equal(by_pillow(dataset.read(0)), by_pillow(encode(smooth())))


def test_a_loss_of_the_library_is_no_reason_to_encode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what it does not take is encoded; that it is missing, somebody has to hear."""

    def missing() -> None:
        raise RuntimeError("not installed")

    monkeypatch.setattr(jpeg, "library", missing)
    assert lossless.rewrite(encode(smooth()), 500, False) is not None  # not needed
    with pytest.raises(RuntimeError):
        lossless.rewrite(encode(smooth(), progressive=True), 500, False)
