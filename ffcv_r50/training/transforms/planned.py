"""Transforms of single images that draw a plan, which one compiled function carries out."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ffcv_r50.data import pixels
from ffcv_r50.data.compiled import CHECKSUM, njit_cached
from ffcv_r50.data.loader import Draw, ImageTransform
from ffcv_r50.data.philox import of_view, uniform
from ffcv_r50.training.transforms import ImageOptions
from ffcv_r50.training.transforms.normalize import IMAGENET, Statistics


class Plan(NamedTuple):
    """What is done to some images."""

    ops: npt.NDArray[np.int64]
    """[n, k], see :class:`ffcv_r50.data.pixels.Op`; one after another."""
    arguments: npt.NDArray[np.float64]
    """[n, k, ARGUMENTS]."""

    @classmethod
    def empty(cls, images: int, operations: int) -> "Plan":
        """To be filled; it does nothing as it is."""
        shape = (images, operations)
        return cls(np.zeros(shape, np.int64), np.zeros((*shape, pixels.ARGUMENTS)))


class PlannedOptions(ImageOptions):
    """The options of such a transform."""

    def plan(self, size: tuple[int, int], views: npt.NDArray[np.int64], draw: Draw) -> Plan:
        """What is done to which image: a function of its view, its size and ``draw``.

        Args:
            size: height and width of the images.
            views: int64 [n], see :class:`~ffcv_r50.data.loader.ImageTransform`.
            draw: where random numbers come from.
        """
        raise NotImplementedError

    def build(self, statistics: Statistics = IMAGENET) -> ImageTransform:
        """Carry out the plan."""
        return self._apply

    def _apply(
        self, images: npt.NDArray[np.uint8], views: npt.NDArray[np.int64], draw: Draw
    ) -> None:
        _, height, width, _ = images.shape
        pixels.apply(images, *self.plan((height, width), views, draw))


def _build(checksum: int):  # type: ignore[no-untyped-def]
    @njit_cached
    def fill(seed, epoch, stream, views, numbers):  # type: ignore[no-untyped-def]
        if checksum < 0:
            return
        for i in range(len(views)):
            for j in range(0, numbers.shape[1], 4):
                four = of_view(views[i], epoch, stream + j // 4, seed)
                for k in range(min(4, numbers.shape[1] - j)):
                    numbers[i, j + k] = uniform(four[k], 0.0, 1.0)

    return fill


_fill = _build(CHECKSUM)


def uniforms(views: npt.NDArray[np.int64], draw: Draw, count: int) -> npt.NDArray[np.float64]:
    """So many random numbers in [0, 1) for each view, float64 [n, count]."""
    numbers = np.empty((len(views), count))
    _fill(draw.seed, draw.epoch, draw.stream, views, numbers)
    return numbers
