"""AugMix (Hendrycks et al. 2019, arXiv:1912.02781)."""

import math
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt

from ffcv_r50.data import pixels
from ffcv_r50.data.compiled import CHECKSUM, njit_cached
from ffcv_r50.data.loader import Draw, ImageTransform
from ffcv_r50.data.philox import below, log_gamma_try, of_view
from ffcv_r50.data.pixels import levels
from ffcv_r50.data.pixels.levels import Level, Strengths
from ffcv_r50.keyframes import Varying
from ffcv_r50.registry import Range
from ffcv_r50.training.transforms import TRANSFORMS, ImageOptions
from ffcv_r50.training.transforms.normalize import IMAGENET, Statistics

HIGHEST = 9
"""Of the ten levels."""
DEEPEST = 3
"""Operations of a chain, at most, where their number is drawn."""
MOST = 100
"""Chains, and operations of a chain."""
DEPTHS, WEIGHTS, TRIES = 1 << 14, 1 << 15, 64
"""Streams: operations from the first on, then the chains' lengths, then tries at each gamma variate."""
FACTORS = (pixels.Op.BRIGHTNESS, pixels.Op.SATURATION, pixels.Op.CONTRAST, pixels.Op.SHARPNESS)


class Mixture(NamedTuple):
    """What is done to some images."""

    ops: npt.NDArray[np.int64]
    """[n, chains, k], see :class:`ffcv_r50.data.pixels.Op`."""
    arguments: npt.NDArray[np.float64]
    """[n, chains, k, ARGUMENTS]."""
    weights: npt.NDArray[np.float32]
    """[n, 1 + chains], of the image itself and of what each chain makes of it; they sum to 1."""


@TRANSFORMS.register("augmix")
class AugMix(ImageOptions):
    """Each image is mixed with what some chains of operations make of it: torchvision's ``AugMix``.

    The pixels of the operations are those of :mod:`ffcv_r50.data.pixels`, where torchvision by itself
    interpolates. Without the paper's loss of consistency, which compares three views of an image.
    """

    severity: Annotated[int, Range(at_least=1, at_most=HIGHEST + 1)] = 3
    """Levels of an operation to choose from, the weakest of ten."""
    width: Annotated[int, Range(at_least=1, at_most=MOST)] = 3
    """Chains."""
    depth: Annotated[int, Range(at_least=-1, at_most=MOST)] = -1
    """Operations of a chain; -1 draws 1, 2 or 3 for each chain."""
    alpha: Annotated[Varying, Range(above=0)] = Varying(1.0)
    """Of the Dirichlet and Beta distributions of the weights."""
    all_ops: bool = True
    """Also brightness, colour, contrast and sharpness, which the paper leaves out: ImageNet-C has them."""

    def build(self, statistics: Statistics = IMAGENET) -> ImageTransform:
        """As it says."""
        return self._apply

    def plan(self, size: tuple[int, int], views: npt.NDArray[np.int64], draw: Draw) -> Mixture:
        """What is done to which image: a function of its view, its size and ``draw``.

        Args:
            size: height and width of the images.
            views: int64 [n], see :class:`~ffcv_r50.data.loader.ImageTransform`.
            draw: where random numbers come from.
        """
        shape = (len(views), self.width, self.depth if self.depth > 0 else DEEPEST)
        mixture = Mixture(
            np.zeros(shape, np.int64),
            np.zeros((*shape, pixels.ARGUMENTS)),
            np.empty((len(views), 1 + self.width), np.float32),
        )
        table = levels.table(augmix_levels(size, self.all_ops))
        alpha = float(self.alpha.at(draw.epoch))
        rest = (table, self.severity, self.depth, alpha)
        _choose(draw.seed, draw.epoch, draw.stream, views, *rest, *mixture)
        return mixture

    def _apply(
        self, images: npt.NDArray[np.uint8], views: npt.NDArray[np.int64], draw: Draw
    ) -> None:
        _, height, width, _ = images.shape
        mixture = self.plan((height, width), views, draw)
        chains = np.repeat(images[None], self.width, 0)
        for i, chain in enumerate(chains):
            pixels.apply(
                chain,
                np.ascontiguousarray(mixture.ops[:, i]),
                np.ascontiguousarray(mixture.arguments[:, i]),
            )
        _mix(images, chains, mixture.weights)


def augmix_levels(size: tuple[int, int], all_ops: bool) -> list[Level]:
    """The operations of torchvision's ``AugMix`` for images of this height and width."""
    rows = levels.torchvision_levels(Strengths(0.3, size[1] / 3, size[0] / 3, 30, 0.9, (4, 4)))
    return [row for row in rows if all_ops or row.op not in FACTORS]


def _build(checksum: int):  # type: ignore[no-untyped-def]
    @njit_cached
    def choose(  # type: ignore[no-untyped-def]
        seed, epoch, stream, views, table, severity, depth, alpha, ops, arguments, weights
    ):
        if checksum < 0:
            return
        chains, deepest = ops.shape[1], ops.shape[2]
        logs = np.empty(2 + chains)
        for i in range(len(views)):
            for c in range(chains):
                r0, _, _, _ = of_view(views[i], epoch, stream + DEPTHS + c, seed)
                count = depth if depth > 0 else 1 + below(r0, deepest)
                for j in range(count):
                    place = stream + c * deepest + j
                    r0, r1, r2, _ = of_view(views[i], epoch, place, seed)
                    row = table[below(r0, len(table))]
                    level = below(r2, severity) / HIGHEST
                    ops[i, c, j] = int(row[0])
                    arguments[i, c, j, 0] = levels.argument(row, level, below(r1, 2) == 1)
            for g in range(2 + chains):
                for k in range(TRIES):
                    place = stream + WEIGHTS + TRIES * g + k
                    numbers = of_view(views[i], epoch, place, seed)
                    drawn, logs[g] = log_gamma_try(alpha, numbers)
                    if drawn:
                        break
            own = 1.0 / (1.0 + math.exp(logs[1] - logs[0]))
            shares = np.exp(logs[2:] - logs[2:].max())
            weights[i, 0] = own
            weights[i, 1:] = (1.0 - own) * shares / shares.sum()

    return choose


_choose = _build(CHECKSUM)


@njit_cached
def _mix(images, chains, weights):  # type: ignore[no-untyped-def]
    """Replace images, uint8 [n, height, width, 3], by their mixtures with chains, [k, n, ...]."""
    sums = np.empty(images[0].size, np.float32)
    for i in range(len(images)):
        values = images[i].reshape(sums.size)
        for k in range(sums.size):
            sums[k] = weights[i, 0] * np.float32(values[k])
        for c in range(len(chains)):
            chain, weight = chains[c, i].reshape(sums.size), weights[i, 1 + c]
            for k in range(sums.size):
                sums[k] += weight * np.float32(chain[k])
        for k in range(sums.size):
            # The weights sum to 1 but for their rounding.
            values[k] = np.uint8(min(sums[k], np.float32(255)))
