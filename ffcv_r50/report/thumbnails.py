"""Small pictures inside of a page: images of a dataset, and matrices too large for names."""

import base64
import io

import numpy as np
from PIL import Image

from ffcv_r50.data.beton import MODE_RAW, Beton
from ffcv_r50.report.numbers import Ints

SIDE = 88
"""Of the longer side, pixels."""
QUALITY = 70
LARGEST_MATRIX = 500
"""Pixels; larger matrices are drawn in blocks."""
INK = (0, 114, 178)
"""The page's first colour, which is seen on dark and on light."""


def uri(image: Image.Image, side: int = SIDE) -> str:
    """A picture as the address that holds it."""
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def of_sample(dataset: Beton, index: int, side: int = SIDE) -> str:
    """A whole image of a dataset, small; empty where it cannot be decoded."""
    data = dataset.read(index)
    if dataset.modes[index] == MODE_RAW:
        shape = int(dataset.heights[index]), int(dataset.widths[index]), 3
        return uri(Image.fromarray(np.frombuffer(data, np.uint8).reshape(shape)), side)
    try:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (2 * side, 2 * side))  # decodes no more than that needs
        return uri(image.convert("RGB"), side)
    except OSError:
        return ""


def of_matrix(matrix: Ints) -> str:
    """What is off the diagonal of a confusion matrix: the more samples, the more ink."""
    counts = matrix - np.diag(np.diag(matrix))
    block = -(-len(counts) // LARGEST_MATRIX)
    room = -len(counts) % block
    padded = np.pad(counts, (0, room))
    side = len(padded) // block
    blocks = padded.reshape(side, block, side, block).sum((1, 3))
    # The logarithm, and a start well above nothing: most cells hold one sample.
    strength = np.log1p(blocks) / np.log1p(max(int(blocks.max()), 1))
    ink = np.where(blocks > 0, 60 + 195 * strength, 0).round().astype(np.uint8)
    picture = np.dstack([*(np.full_like(ink, c) for c in INK), ink])
    buffer = io.BytesIO()
    Image.fromarray(picture, "RGBA").save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
