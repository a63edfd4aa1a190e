"""The operations on pixels against torchvision's on PIL images, timm's, and torchvision's tensors."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm
from torchvision.transforms import functional as F

from ffcv_r50.data import pixels
from ffcv_r50.data.pixels import Op
from tests.data.conftest import make_image
from tests.pixels import by_torchvision

Pixels = npt.NDArray[np.uint8]


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)


def of_one_colour() -> Pixels:
    return np.full((31, 40, 3), (200, 3, 90), np.uint8)


def of_one_channel() -> Pixels:
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 1] = noise(32, 32)[..., 1]
    return image


def of_few_values() -> Pixels:
    """Each channel has two or three values, and most of one: where tables have corners."""
    image = np.full((40, 50, 3), 17, np.uint8)
    image[:3, :5] = (18, 250, 40)
    image[20:, :, 2] = 255
    return image


IMAGES = {
    "noise": noise(33, 47),
    "photo": make_image(160, 160, 5),
    "wide": make_image(20, 71, 6),
    "colour": of_one_colour(),
    "channel": of_one_channel(),
    "values": of_few_values(),
    "tiny": noise(2, 2),
    "pixel": noise(1, 1),
    "column": noise(9, 1),
}

ARGUMENTS: dict[Op, list[tuple[float, ...]]] = {
    Op.INVERT: [()],
    Op.POSTERIZE: [(bits,) for bits in range(9)],
    Op.SOLARIZE: [(0,), (0.5,), (127,), (178.5,), (254,), (255,), (256,)],
    Op.SOLARIZE_ADD: [(0,), (33,), (110,), (128,)],
    Op.AUTOCONTRAST: [()],
    Op.EQUALIZE: [()],
    Op.BRIGHTNESS: [(f,) for f in (0, 0.1, 0.73, 1, 1.27, 1.9, 3)],
    Op.CONTRAST: [(f,) for f in (0, 0.1, 0.73, 1, 1.27, 1.9, 3)],
    Op.SATURATION: [(f,) for f in (0, 0.1, 0.73, 1, 1.27, 1.9, 3)],
    Op.SHARPNESS: [(f,) for f in (0, 0.01, 0.73, 1, 1.27, 1.99)],
    Op.SHEAR_X: [(s,) for s in (-0.99, -0.3, -0.09, 0, 0.01, 0.231, 0.66)],
    Op.SHEAR_Y: [(s,) for s in (-0.99, -0.3, -0.09, 0, 0.01, 0.231, 0.66)],
    Op.TRANSLATE_X: [(t,) for t in (-32, -3, 0, 1, 17, 200)],
    Op.TRANSLATE_Y: [(t,) for t in (-32, -3, 0, 1, 17, 200)],
    Op.ROTATE: [(r,) for r in (-135, -90, -45, -9, 0, 0.3, 27, 30, 45, 90, 135, 180)],
    Op.AFFINE: [
        (0, 1, 0, 0),
        (0, 1, 3, -2),
        (0, 0.9, 2, 0),
        (0, 1.5, 0, 5),
        (30, 1.1, 4, 1),
        (-45, 0.7, 0, 0),
        (10, 2, -8, 6),
    ],
    Op.HUE: [(h,) for h in (-0.5, -0.1, 0, 0.003, 0.25, 0.5)],
    Op.GRAY: [()],
}


def applied(image: Pixels, op: Op, *arguments: float) -> Pixels:
    plan = np.zeros((1, 1, pixels.ARGUMENTS))
    plan[..., : len(arguments)] = arguments
    images = image[None].copy()
    pixels.apply(images, np.full((1, 1), op, np.int64), plan)
    return np.asarray(images[0])


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("op", ARGUMENTS, ids=lambda op: op.name.lower())
def test_equal_to_torchvision_on_pil_images(op: Op, image: Pixels) -> None:
    for arguments in ARGUMENTS[op]:
        ours, theirs = applied(image, op, *arguments), by_torchvision(image, op, *arguments)
        assert np.array_equal(ours, theirs), arguments


def test_every_colour_turns_as_in_pillow() -> None:
    """All of a grid of 68 values a channel, whose hues and strengths lie on borders too."""
    axis = np.array([*range(0, 256, 4), 1, 127, 254, 255], np.uint8)
    image = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(68, -1, 3)
    for shift in (0.0, 0.1, -0.37):
        assert np.array_equal(applied(image, Op.HUE, shift), by_torchvision(image, Op.HUE, shift))


@pytest.mark.parametrize("size", [(1, 7), (16, 20), (25, 31), (100, 90)])
def test_random_affine_maps_are_pillows(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    image = noise(*size)
    for _ in range(100):
        arguments = (
            rng.uniform(-180, 180),
            rng.uniform(0.3, 3),
            *rng.integers(-9, 9, 2).tolist(),
        )
        assert np.array_equal(
            applied(image, Op.AFFINE, *arguments), by_torchvision(image, Op.AFFINE, *arguments)
        ), arguments


def test_a_moved_tensor_differs_only_on_rounding_borders() -> None:
    """torchvision's tensors sample a grid of float32: another pixel where that rounds, nowhere else."""
    image = make_image(61, 80, 2)
    for degrees, scale, right, down in ARGUMENTS[Op.AFFINE]:
        ours = applied(image, Op.AFFINE, degrees, scale, right, down)
        theirs = F.affine(
            torch.from_numpy(image).permute(2, 0, 1),
            angle=degrees,
            translate=[int(right), int(down)],
            scale=scale,
            shear=[0.0, 0.0],
        )
        different = (ours != theirs.permute(1, 2, 0).numpy()).any(-1)
        angle = math.radians(degrees)
        a, b = math.cos(angle) / scale, math.sin(angle) / scale
        y, x = np.mgrid[:61, :80] + 0.5
        x, y = x - 40 - right, y - 30.5 - down
        sources = np.stack([a * x + b * y + 40, a * y - b * x + 30.5])
        border = (np.abs(sources - np.rint(sources)) < 1e-3).any(0)
        assert not (different & ~border).any()


@pytest.mark.parametrize("share", [-0.4, 0.1, 0.21])
def test_fractions_of_pixels_move_as_in_timm(share: float) -> None:
    image = make_image(33, 47, 1)
    resample = Image.Resampling.NEAREST
    given = Image.fromarray(image)
    across = timm.translate_x_rel(given, share, resample=resample, fillcolor=(0, 0, 0))
    down = timm.translate_y_rel(given, share, resample=resample, fillcolor=(0, 0, 0))
    assert np.array_equal(applied(image, Op.TRANSLATE_X, -share * 47), np.asarray(across))
    assert np.array_equal(applied(image, Op.TRANSLATE_Y, -share * 33), np.asarray(down))


@pytest.mark.parametrize("image", [noise(33, 47), make_image(64, 50, 5)], ids=["noise", "photo"])
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0, 3.7])
def test_blur_is_within_one_of_torchvision(image: Pixels, sigma: float) -> None:
    side = 2 * math.ceil(3 * sigma) + 1
    theirs = np.asarray(F.gaussian_blur(Image.fromarray(image), [side, side], [sigma, sigma]))
    assert np.abs(applied(image, Op.BLUR, sigma).astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2), (7, 4)])
def test_blur_of_images_smaller_than_its_kernel(size: tuple[int, int]) -> None:
    """A brute-force sum over an image mirrored as often as needed."""
    image, sigma, radius = noise(*size), 1.5, 5
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    padding = [(radius, radius), (radius, radius), (0, 0)]
    padded = np.pad(image.astype(float), padding, mode="reflect")
    expected = sum(
        wy * wx * padded[y : y + size[0], x : x + size[1]]
        for y, wy in enumerate(weights / weights.sum())
        for x, wx in enumerate(weights / weights.sum())
    )
    assert np.abs(applied(image, Op.BLUR, sigma) - expected).max() <= 0.501


def test_boxes_are_filled_and_the_rest_stays() -> None:
    image = make_image(33, 47)
    black, coloured = image.copy(), image.copy()
    black[3:9, 40:47] = 0
    coloured[0:33, 5:6] = (124, 0, 255)
    assert np.array_equal(applied(image, Op.BOX, 3, 40, 9, 47), black)
    assert np.array_equal(applied(image, Op.BOX, 0, 5, 33, 6, 124, 0, 255), coloured)


def test_operations_follow_each_other_and_images_do_not_mix() -> None:
    images = np.stack([make_image(40, 60, i) for i in range(5)])
    ops = np.array(
        [
            [Op.ROTATE, Op.EQUALIZE],
            [Op.EQUALIZE, Op.ROTATE],
            [Op.IDENTITY, Op.GRAY],
            [Op.IDENTITY, Op.IDENTITY],
            [Op.BLUR, Op.SHARPNESS],
        ]
    )
    arguments = np.full((5, 2, pixels.ARGUMENTS), 1.5)
    done = images.copy()
    pixels.apply(done, ops, arguments)
    for i in range(5):
        one = images[i]
        for op in ops[i]:
            one = applied(one, Op(op), 1.5)
        assert np.array_equal(done[i], one)
    assert np.array_equal(done[3], images[3])
    assert not np.array_equal(done[0], done[1])
