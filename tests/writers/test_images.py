import io
import itertools
import runpy
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import ffcv.fields.rgb_image
import numpy as np
import numpy.typing as npt
import pytest
from numba.core.caching import CacheImpl
from PIL import Image, ImageOps
from torchvision.datasets.folder import pil_loader

from ffcv_r50.data import beton, photos
from writers import area, images, restarts
from writers.sources import BadImage

Pixels = npt.NDArray[np.uint8]


def picture(height: int, width: int, channels: int = 3) -> Pixels:
    """Smooth, without symmetry, every channel another."""
    y, x = np.mgrid[0:height, 0:width] / 20
    layers = [128 + 100 * np.sin(x * (1 + c / 3) + y * (0.4 + c / 5) + c) for c in range(channels)]
    return np.stack(layers, -1).astype(np.uint8).squeeze()


def encoding(**changes: Any) -> images.Encoding:
    settings: dict[str, Any] = {
        "max_resolution": 0,
        "jpeg_quality": 90,
        "smart_threshold": 4.0,
        "exif_rotate": False,
        "max_bytes": 1 << 23,
    }
    return images.Encoding(**settings | changes)


# ------------------------------------------------------------------------------------ odd inputs


def png(header: bytes, rows: bytes) -> bytes:
    """A PNG from its IHDR content and its unfiltered rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def saved(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def rgb16_png() -> bytes:
    pixels = (picture(12, 10).astype(">u2") << 8) + 77
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return png(struct.pack(">IIBBBBB", 10, 12, 16, 2, 0, 0, 0), rows)


def palette_with_alpha() -> bytes:
    image = Image.fromarray(picture(20, 30)).quantize(16)
    return saved(image, format="PNG", transparency=bytes(range(0, 256, 16)))


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[photos.EXIF_ORIENTATION] = orientation
    return block


TEXT_ORIENTATION = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0"
RGB = Image.fromarray(picture(24, 37))
ODD: dict[str, Callable[[], bytes]] = {
    "plain.JPEG": lambda: saved(RGB, format="JPEG"),
    "gray.jpg": lambda: saved(RGB.convert("L"), format="JPEG"),
    "cmyk.jpg": lambda: saved(RGB.convert("CMYK"), format="JPEG"),
    "progressive.jpg": lambda: saved(RGB, format="JPEG", progressive=True),
    "rotated.jpg": lambda: saved(RGB, format="JPEG", exif=exif(6)),
    "bad_exif.jpg": lambda: saved(RGB, format="JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff garbage"),
    "text_orientation.jpg": lambda: saved(RGB, format="JPEG", exif=TEXT_ORIENTATION),
    "garbage_behind.jpg": lambda: saved(RGB, format="JPEG") + b"\0garbage" * 99,
    "gray.png": lambda: saved(RGB.convert("L"), format="PNG"),
    "gray_alpha.png": lambda: saved(RGB.convert("LA"), format="PNG"),
    "one_bit.png": lambda: saved(RGB.convert("1"), format="PNG"),
    "palette.png": lambda: saved(RGB.quantize(7), format="PNG"),
    "palette_alpha.png": palette_with_alpha,
    "alpha.png": lambda: saved(Image.fromarray(picture(9, 8, 4)), format="PNG"),
    "rgb16.png": rgb16_png,
    "png_named.JPEG": lambda: saved(RGB, format="PNG"),
    "gif_named.jpg": lambda: saved(RGB, format="GIF"),
    "webp_named.jpg": lambda: saved(RGB, format="WEBP"),
    "photo.webp": lambda: saved(RGB, format="WEBP"),
    "two_in_one.jpg": lambda: saved(
        RGB, format="MPO", save_all=True, append_images=[RGB.rotate(90)]
    ),
    "lab.tif": lambda: saved(RGB.convert("LAB"), format="TIFF"),
    "turned.tif": lambda: saved(RGB, format="TIFF", tiffinfo={photos.EXIF_ORIENTATION: 6}),
    "plain.bmp": lambda: saved(RGB, format="BMP"),
    "plain.ppm": lambda: saved(RGB, format="PPM"),
    "dot.png": lambda: saved(Image.fromarray(picture(8, 8)).crop((0, 0, 1, 1)), format="PNG"),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # the reference's, ours must be silent
def test_pixels_are_torchvisions(
    name: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / name
    path.write_bytes(ODD[name]())
    ours = photos.decode(path.read_bytes())
    assert not recwarn.list
    np.testing.assert_array_equal(ours, np.asarray(pil_loader(path)), strict=True)


@pytest.mark.parametrize("name", ["gray16.png", "gray16.tif", "gray16_big.tif", "gray16.pgm"])
def test_16_bit_gray_keeps_its_upper_bits(name: str, tmp_path: Path) -> None:
    wide = np.arange(64 * 32, dtype=np.uint16).reshape(32, 64) * 32 + 7
    if name.endswith("pgm"):
        content = b"P5 64 32 65535\n" + wide.astype(">u2").tobytes()
    elif name == "gray16_big.tif":
        content = saved(
            Image.frombytes("I;16B", (64, 32), wide.astype(">u2").tobytes()), format="TIFF"
        )
    else:
        content = saved(Image.fromarray(wide), format="PNG" if name.endswith("png") else "TIFF")
    path = tmp_path / name
    path.write_bytes(content)
    expected = np.repeat((wide // 256).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(photos.decode(path.read_bytes()), expected, strict=True)
    assert np.asarray(pil_loader(path)).mean() > 250  # why torchvision is not followed here


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_an_option(orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(saved(RGB, format="JPEG", exif=exif(orientation)))
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
        as_stored = np.asarray(image)
    np.testing.assert_array_equal(photos.decode(path.read_bytes(), exif_rotate=True), upright)
    np.testing.assert_array_equal(photos.decode(path.read_bytes()), as_stored)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "name", ["plain.JPEG", "bad_exif.jpg", "text_orientation.jpg", "turned.tif", "gif_named.jpg"]
)
def test_exif_rotation_leaves_upright_images_alone(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(ODD[name]())
    np.testing.assert_array_equal(
        photos.decode(path.read_bytes(), exif_rotate=True), np.asarray(pil_loader(path))
    )


LARGE = Image.fromarray(picture(200, 300))


def truncated(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def png_of_size(width: int, height: int) -> bytes:
    return png(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"")


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.jpg": (lambda: b"", "empty file"),
    "page.JPEG": (lambda: b"<html>404</html>", "not an image that Pillow can read"),
    "cut.jpg": (lambda: truncated(saved(LARGE, format="JPEG")), "truncated"),
    "cut.png": (lambda: truncated(saved(LARGE, format="PNG")), "truncated"),
    "cut.gif.jpg": (lambda: truncated(saved(LARGE, format="GIF")), "truncated"),
    "cut.webp": (lambda: truncated(saved(LARGE, format="WEBP")), "decod|image"),
    "cut.tif": (lambda: truncated(saved(LARGE, format="TIFF")), "image|truncated|bytes"),
    "checksum.png": (lambda: saved(RGB, format="PNG").replace(b"IDAT", b"IDAU"), "."),
    "bomb.png": (lambda: png_of_size(40_000, 40_000), "decompression bomb"),
    "large.png": (lambda: png_of_size(10_000, 10_000), "truncated|image"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_have_a_reason(name: str, recwarn: pytest.WarningsRecorder) -> None:
    content, reason = BAD[name]
    with pytest.raises(BadImage, match=reason) as caught:
        photos.decode(content())
    assert not recwarn.list
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)  # an address would differ from run to run


def test_too_little_memory_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(photos, "_eight_bits", fail)
    with pytest.raises(MemoryError):
        photos.decode(ODD["plain.JPEG"]())


# ---------------------------------------------------------------------------------------- shrinking


@pytest.mark.parametrize("limit", [1, 7, 96, 500])
def test_sizes_are_stock_ffcvs(limit: int) -> None:
    rng = np.random.default_rng(limit)
    for height, width in [(500, 333), (501, 500), (1, 2), *rng.integers(1, 1500, (40, 2)).tolist()]:
        size = area.limited_size(height, width, limit)
        assert max(size) <= max(limit, 1)
        if limit * min(height, width) // max(height, width) == 0:
            assert min(size) == 1  # stock fails here
        else:
            stock = ffcv.fields.rgb_image.resizer(np.zeros((height, width, 3), np.uint8), limit)
            assert size == stock.shape[:2]
    assert area.limited_size(4000, 3000, 0) == (4000, 3000)


@pytest.mark.parametrize(
    ("height", "width", "new_height", "new_width"),
    [
        (60, 80, 30, 40),
        (70, 93, 37, 50),
        (75, 100, 33, 50),
        (51, 50, 50, 49),
        (300, 7, 50, 1),
        (5, 3, 1, 1),
    ],
)
def test_shrinking_is_area_averaging(
    height: int, width: int, new_height: int, new_width: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ours = area.shrink(pixels, new_height, new_width)
    # Brute force: give each source pixel new_height x new_width parts, average whole blocks.
    parts = np.repeat(np.repeat(pixels.astype(np.int64), new_height, 0), new_width, 1)
    blocks = parts.reshape(new_height, height, new_width, width, 3)
    np.testing.assert_array_equal(ours, np.floor(blocks.mean((1, 3)) + 0.5).astype(np.uint8))
    stock = cv2.resize(pixels, (new_width, new_height), interpolation=cv2.INTER_AREA)
    assert np.abs(ours.astype(int) - stock).max() <= 1  # float32 sums and another rounding


def test_sums_of_very_tall_images_do_not_overflow() -> None:
    white = np.full((8_500_000, 1, 3), 255, np.uint8)
    assert area.shrink(white, 2, 1).tolist() == [[[255] * 3]] * 2


# ----------------------------------------------------------------------------------------- encoding


def test_jpegs_are_baseline_420_with_restart_markers_that_divide_the_row() -> None:
    content = images.jpeg(Image.fromarray(picture(70, 320)), 90)
    assert b"\xff\xc0" in content  # SOF0
    sof = content.index(b"\xff\xc0")
    assert content[sof + 11 :: 3][:3] == b"\x22\x11\x11"  # sampling of Y, Cb, Cr
    dri = content.index(b"\xff\xdd")
    assert struct.unpack(">HH", content[dri + 2 : dri + 6]) == (4, 4)
    scan = content[content.index(b"\xff\xda") :]
    markers = [b for a, b in itertools.pairwise(scan) if a == 0xFF and 0xD0 <= b <= 0xD7]
    count = 5 * 5 - 1  # five rows of five intervals of four MCUs, none behind the last
    assert markers == [0xD0 + i % 8 for i in range(count)]


@pytest.mark.parametrize("quality", [50, 90])
def test_jpeg_pixels_are_those_of_an_ordinary_encoder(quality: int) -> None:
    pixels = picture(70, 100)
    ours = np.asarray(Image.open(io.BytesIO(images.jpeg(Image.fromarray(pixels), quality))))
    plain = saved(Image.fromarray(pixels), format="JPEG", quality=quality, subsampling=2)
    np.testing.assert_array_equal(ours, np.asarray(Image.open(io.BytesIO(plain))))


def test_jpegs_carry_nothing_but_pixels(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(saved(RGB, format="JPEG", comment=b"secret", exif=exif(6), icc_profile=b"icc"))
    stored = images.encode(photos.read(path.read_bytes()), "jpg", encoding()).data
    for trace in (b"secret", b"Exif", b"ICC_PROFILE"):
        assert trace in path.read_bytes()
        assert trace not in stored


def test_restart_intervals() -> None:
    chosen = {width: restarts.interval(width, 16) for width in (1, 16, 17, 80, 375, 500, 490, 496)}
    assert chosen == {1: 1, 16: 1, 17: 2, 80: 5, 375: 4, 500: 4, 490: 1, 496: 1}
    for width in range(1, 2000):
        assert -(-width // 16) % restarts.interval(width, 16) == 0


def test_smart_stores_as_jpeg_what_gets_smaller_by_the_threshold() -> None:
    pixels = picture(64, 64)
    ratio = pixels.nbytes / len(images.jpeg(Image.fromarray(pixels), 90))
    for threshold, mode in ((ratio * 1.01, beton.MODE_RAW), (ratio * 0.99, beton.MODE_JPEG)):
        stored = images.encode(
            Image.fromarray(pixels), "smart", encoding(smart_threshold=threshold)
        )
        assert stored.mode == mode
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert images.encode(Image.fromarray(noise), "smart", encoding()).mode == beton.MODE_RAW
    assert (
        images.encode(Image.fromarray(picture(400, 400)), "smart", encoding()).mode
        == beton.MODE_JPEG
    )
    raw = images.encode(Image.fromarray(noise), "smart", encoding())
    assert (raw.height, raw.width, raw.data) == (64, 64, noise.tobytes())


@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_an_image_larger_than_a_page_names_a_resolution_that_fits(mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    with pytest.raises(
        BadImage,
        match=r"^its [0-9,]+ bytes \(160 x 120\) do not fit into a page of 10,000; "
        r"pass --cfg.max_resolution=57 or less$",
    ):
        images.encode(Image.fromarray(noise), mode, encoding(max_bytes=10_000))
    stored = images.encode(
        Image.fromarray(noise), mode, encoding(max_bytes=10_000, max_resolution=57)
    )
    assert len(stored.data) <= 10_000


@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_an_image_too_long_for_jpeg_is_refused(mode: str) -> None:
    with pytest.raises(BadImage, match=r"^its 65501 x 1 pixels are too long, 65500 is the most"):
        images.encode(Image.new("RGB", (65501, 1)), mode, encoding())
    assert images.encode(Image.new("RGB", (65500, 1)), mode, encoding()).width == 65500


def test_a_chunk_keeps_its_order_and_its_failures(tmp_path: Path) -> None:
    def gone() -> bytes:
        return (tmp_path / "gone.png").read_bytes()

    def refused() -> bytes:
        raise BadImage("its shard ends too early")

    results = images.encode_chunk(
        [
            (lambda: saved(Image.fromarray(picture(8, 9)), format="PNG"), "raw"),
            (gone, "raw"),
            (lambda: saved(Image.fromarray(picture(7, 6)), format="PNG"), "jpg"),
            (refused, "jpg"),
        ],
        encoding(),
    )
    assert results[0] == images.Encoded(beton.MODE_RAW, 8, 9, picture(8, 9).tobytes())
    assert results[1] == images.Failed("No such file or directory")
    assert results[2][:3] == (beton.MODE_JPEG, 7, 6)
    assert results[3] == images.Failed("its shard ends too early")


def test_shrinking_needs_no_place_for_numbas_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    runpy.run_path(str(area.__file__))  # a read-only installation without a home
