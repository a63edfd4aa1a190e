"""The operations of :class:`ffcv_r50.data.pixels.Op`, done by torchvision on a PIL image."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image
from timm.data import auto_augment as timm
from torchvision.transforms import functional as F

from ffcv_r50.data.pixels import Op

NAMES = {
    "Identity": Op.IDENTITY,
    "ShearX": Op.SHEAR_X,
    "ShearY": Op.SHEAR_Y,
    "TranslateX": Op.TRANSLATE_X,
    "TranslateY": Op.TRANSLATE_Y,
    "Rotate": Op.ROTATE,
    "Brightness": Op.BRIGHTNESS,
    "Color": Op.SATURATION,
    "Contrast": Op.CONTRAST,
    "Sharpness": Op.SHARPNESS,
    "Posterize": Op.POSTERIZE,
    "Solarize": Op.SOLARIZE,
    "AutoContrast": Op.AUTOCONTRAST,
    "Equalize": Op.EQUALIZE,
    "Invert": Op.INVERT,
}
"""By the names in torchvision's policies."""
FACTORS = (Op.BRIGHTNESS, Op.SATURATION, Op.CONTRAST, Op.SHARPNESS)
"""Of which torchvision's policies have what is added to 1."""


def _moved(image: Image.Image, right: float, down: float) -> Image.Image:
    return F.affine(image, 0.0, [int(right), int(down)], 1.0, [0.0, 0.0])


def _sheared(image: Image.Image, x: float, y: float) -> Image.Image:
    shear = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    return F.affine(image, 0.0, [0, 0], 1.0, shear, center=[0, 0])


def _turned(
    image: Image.Image, degrees: float, scale: float, right: float, down: float
) -> Image.Image:
    return F.affine(image, degrees, [int(right), int(down)], scale, [0.0, 0.0])


def _posterized(image: Image.Image, bits: float) -> Image.Image:
    if bits == 0:  # Pillow refuses it, torchvision's tensors do not
        return F.to_pil_image(F.posterize(F.pil_to_tensor(image), 0))
    return F.posterize(image, int(bits))


DO: dict[Op, Callable[..., Image.Image]] = {
    Op.IDENTITY: lambda image: image,
    Op.INVERT: F.invert,
    Op.POSTERIZE: _posterized,
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
