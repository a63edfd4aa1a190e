"""Image files of any kind to pixels, and to what the evaluation sees of them."""

import io
import tempfile
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ffcv_r50.data import jpeg
from ffcv_r50.data.beton import MODE_RAW
from ffcv_r50.data.decode import Sampling, Scratch, Stored, decode_samples

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the image upright."""
EXIF_ORIENTATION = 0x0112


class BadImage(Exception):
    """An image that cannot be read or stored; the message is the reason in one line."""


def decode(
    content: bytes, exif_rotate: bool = False, formats: tuple[str, ...] | None = None
) -> npt.NDArray[np.uint8]:
    """The pixels of :func:`read`: uint8 [height, width, 3].

    Raises:
        BadImage: as there.
    """
    return np.array(read(content, exif_rotate, formats))


def read(
    content: bytes, exif_rotate: bool = False, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """The pixels that torchvision's ImageFolder gives: ``Image.open(path).convert("RGB")``.

    With one exception: 16-bit grayscale keeps its upper eight bits, as Pillow itself treats 16-bit
    RGB, where ``convert`` turns every value above 255 white.

    Args:
        content: of an image file in any format that Pillow knows.
        exif_rotate: turn the image upright as its EXIF orientation says.
        formats: those that are tried, by Pillow's names; None is all.

    Returns:
        An image in mode RGB, without metadata.

    Raises:
        BadImage: not an image, damaged, truncated, or so large that Pillow refuses it.
    """
    try:
        # Pillow warns of odd metadata and of large images; neither changes a pixel.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=formats)
            rgb = _eight_bits(image)
            rgb.load()
            if rgb.mode != "RGB":  # there, ``convert`` is a copy
                rgb = rgb.convert("RGB")
            # After decoding: Pillow turns TIFFs by itself and then drops their orientation.
            if exif_rotate and (turn := UPRIGHT.get(orientation(image))) is not None:
                rgb = rgb.transpose(turn)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise BadImage("not an image that Pillow can read" if content else "empty file") from error
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise BadImage(" ".join(str(error).split()) or type(error).__name__) from error
    rgb.info = {}
    return rgb


def _eight_bits(image: Image.Image) -> Image.Image:
    """``image``, or its upper eight bits where it is grayscale of 16 bits."""
    # Mode "I" has 32 bits; in a PGM it is how Pillow keeps 16.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where there is none or it cannot be read."""
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block must not cost an image whose pixels are fine
        return 1


def center_crop(
    image: npt.NDArray[np.uint8], resolution: int, crop_ratio: float
) -> npt.NDArray[np.uint8]:
    """What :class:`~ffcv_r50.data.loader.EvalLoader` makes of an image that is stored as pixels.

    Args:
        image: uint8 [height, width, 3].
        resolution: height and width of the result in pixels.
        crop_ratio: side of the crop over the image's shorter side.

    Returns:
        uint8 [resolution, resolution, 3].

    Raises:
        UserError: no libjpeg-turbo.
        OSError: no room for a temporary file.
    """
    jpeg.library()  # the compiled code is linked with it, whether it is called or not
    height, width, _ = image.shape
    out = np.empty((1, resolution, resolution, 3), np.uint8)
    with tempfile.TemporaryFile() as file:  # samples are read from files
        file.write(image.tobytes())
        file.flush()
        stored = Stored(
            file=file.fileno(),
            modes=np.array([MODE_RAW], np.uint8),
            heights=np.array([height], np.int32),
            widths=np.array([width], np.int32),
            offsets=np.zeros(1, np.int64),
            sizes=np.array([image.size], np.int64),
            max_bytes=image.size,
            max_pixels=0,  # of JPEGs, of which there are none
            longest_side=max(height, width),
        )
        scratch = Scratch.allocate(stored, resolution)
        center, first = Sampling.center(crop_ratio), np.zeros(1, np.int64)
        done, status = decode_samples(0, stored, center, first, 0, scratch, out)
    if done != 1:
        raise OSError(f"reading back the pixels of an image failed (status {status})")
    return out[0]
