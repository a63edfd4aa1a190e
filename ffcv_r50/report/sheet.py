"""A contact sheet: images side by side, some words under each."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

TEXT_HEIGHT = 12
MARGIN = 4
SMALLEST = 128
"""Smaller images are enlarged to so many pixels, whole pixels each."""


def draw(images: npt.NDArray[np.uint8], words: Sequence[Sequence[str]]) -> Image.Image:
    """Put the images on a sheet that is about as wide as it is high.

    Args:
        images: [n, height, width, 3].
        words: the lines under each.
    """
    height, width = images.shape[1:3]
    zoom = max(1, -(-SMALLEST // min(height, width)))
    height, width = zoom * height, zoom * width
    columns = math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    lines = max(map(len, words), default=0)
    cell = (width + MARGIN, height + lines * TEXT_HEIGHT + MARGIN)
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_HEIGHT - 2)
    for i, (image, texts) in enumerate(zip(images, words, strict=True)):
        left, top = MARGIN + i % columns * cell[0], MARGIN + i // columns * cell[1]
        pixels = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(pixels, (left, top))
        for line, text in enumerate(texts):
            pen.text((left, top + height + line * TEXT_HEIGHT), text, "black", font)
    return sheet
