"""The operations of :class:`ffcv_r50.data.pixels.Op`, done by torchvision on a PIL image."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image
from timm.data import auto_augment as timm
from torchvision.transforms import functional as F

from ffcv_r50.data.pixels import Op


def _moved(image: Image.Image, right: float, down: float) -> Image.Image:
    return F.affine(image, 0.0, [int(right), int(down)], 1.0, [0.0, 0.0])


def _sheared(image: Image.Image, x: float, y: float) -> Image.Image:
    shear = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    return F.affine(image, 0.0, [0, 0], 1.0, shear, center=[0, 0])


def _turned(
    image: Image.Image, degrees: float, scale: float, right: float, down: float
) -> Image.Image:
    return F.affine(image, degrees, [int(right), int(down)], scale, [0.0, 0.0])


DO: dict[Op, Callable[..., Image.Image]] = {
    Op.IDENTITY: lambda image: image,
    Op.INVERT: F.invert,
    Op.POSTERIZE: lambda image, bits: F.posterize(image, int(bits)),
    Op.SOLARIZE: F.solarize,
    Op.SOLARIZE_ADD: lambda image, amount: timm.solarize_add(image, int(amount)),
    Op.AUTOCONTRAST: F.autocontrast,
    Op.EQUALIZE: F.equalize,
    Op.BRIGHTNESS: F.adjust_brightness,
    Op.CONTRAST: F.adjust_contrast,
    Op.SATURATION: F.adjust_saturation,
    Op.SHARPNESS: F.adjust_sharpness,
    Op.SHEAR_X: lambda image, slope: _sheared(image, slope, 0.0),
    Op.SHEAR_Y: lambda image, slope: _sheared(image, 0.0, slope),
    Op.TRANSLATE_X: lambda image, right: _moved(image, right, 0),
    Op.TRANSLATE_Y: lambda image, down: _moved(image, 0, down),
    Op.ROTATE: F.rotate,
    Op.AFFINE: _turned,
    Op.HUE: F.adjust_hue,
    Op.GRAY: lambda image: F.to_grayscale(image, 3),
}


def by_torchvision(
    image: npt.NDArray[np.uint8], op: Op, *arguments: float
) -> npt.NDArray[np.uint8]:
    """What torchvision makes of pixels, uint8 [height, width, 3]."""
    return np.asarray(DO[op](Image.fromarray(image), *arguments))
