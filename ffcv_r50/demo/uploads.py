"""Uploads, which anybody may have made: to pixels, or refused with a sentence."""

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from ffcv_r50.data import photos
from ffcv_r50.data.decode import MAX_SCANNED
from ffcv_r50.errors import one_line

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""By Pillow's names. Those that browsers show; Pillow knows others that start programs (EPS)."""
MOST_BYTES = 32_000_000
"""Photos of 20 MB are taken, as they come from good cameras."""
MOST_PIXELS = 64_000_000
"""Such a photo takes up to 0.8 GB while it is decoded and cropped, and up to 4 s of one core."""
KINDS = "JPEG, PNG, WebP, GIF or BMP"


class Refused(Exception):
    """A request that is not answered; the message is a sentence for the person who made it.

    Args:
        status: of HTTP.
        sentence: what is wrong, and what to do.
        seconds: after which it may be tried again.
    """

    def __init__(self, status: int, sentence: str, seconds: int | None = None) -> None:
        super().__init__(one_line(sentence))
        self.status, self.seconds = status, seconds


def pixels_of(content: bytes) -> npt.NDArray[np.uint8]:
    """The pixels of an uploaded image, upright: uint8 [height, width, 3].

    Args:
        content: the upload.

    Raises:
        Refused: no image, a damaged one, or one that would take too much memory or time.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images, which have a limit here
            width, height = Image.open(io.BytesIO(content), formats=FORMATS).size
    except UnidentifiedImageError as error:
        what = f"This is not a {KINDS} image." if content else "The file is empty."
        raise Refused(415, f"{what} Choose another file.") from error
    except Image.DecompressionBombError as error:
        raise _too_many("") from error
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise _damaged(error) from error
    if width * height > MOST_PIXELS:
        raise _too_many(f" ({width:,} x {height:,} pixels)")
    # The marker before each scan of a JPEG; in what is encoded, 0xff is followed by 0x00.
    scans = content.count(b"\xff\xda") if content.startswith(b"\xff\xd8") else 1
    if scans * width * height > MAX_SCANNED:
        raise Refused(
            422, f"This JPEG has {scans:,} scans, which take minutes. Save it in another way."
        )
    try:
        # Upright also where the network's dataset was not: whoever takes a photo holds it so.
        return photos.decode(content, exif_rotate=True, formats=FORMATS)
    except MemoryError as error:
        raise Refused(
            503, "The server has not enough memory for this image. Make it smaller."
        ) from error
    except photos.BadImage as error:
        raise _damaged(error) from error


def too_large(size: int) -> Refused:
    """An upload of so many bytes."""
    return Refused(
        413,
        f"The file has {size / 1e6:.0f} MB, at most {MOST_BYTES / 1e6:.0f} MB are taken. "
        "Make the image smaller.",
    )


def _too_many(what: str) -> Refused:
    return Refused(
        413,
        f"The image is too large{what}. Make it smaller, at most "
        f"{MOST_PIXELS / 1e6:.0f} megapixels.",
    )


def _damaged(error: Exception) -> Refused:
    reason = " ".join(str(error).split()) or type(error).__name__
    return Refused(422, f"The image is damaged ({reason}). Choose another file.")
