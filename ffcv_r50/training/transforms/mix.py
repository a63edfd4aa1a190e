"""Mixup (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899)."""

import math
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ffcv_r50.data.compiled import CHECKSUM, njit, njit_cached
from ffcv_r50.data.philox import below, log_gamma_try, philox4x32, uniform
from ffcv_r50.keyframes import Varying
from ffcv_r50.registry import Range
from ffcv_r50.training.protocols import Batch, Step, Transform
from ffcv_r50.training.transforms import TRANSFORMS, BatchOptions
from ffcv_r50.training.transforms.boxes import inside

TRIES = 64
"""Of the rejection sampling; more than 95 % of the tries succeed."""

Strength = Annotated[Varying, Range(at_least=0)]
Share = Annotated[Varying, Range(at_least=0, at_most=1)]


@TRANSFORMS.register("mix")
class Mix(BatchOptions):
    """Mixup, cutmix, or for each pair one of them."""

    mixup: Strength = Varying(0.0)
    """The alpha of mixup's Beta(alpha, alpha); 0 is none."""
    cutmix: Strength = Varying(0.0)
    """The alpha of cutmix's Beta(alpha, alpha); 0 is none."""
    switch: Share = Varying(0.5)
    """Probability of cutmix, where there are both."""
    probability: Share = Varying(1.0)
    """That a pair is mixed at all."""

    together: ClassVar = 2

    def build(self, num_classes: int, stream: int) -> Transform:
        """See :class:`Mixing`."""
        return Mixing(self, num_classes, stream)


class Mixing:
    """Mixes each sample with its neighbour in the global batch: 0 with 1, 2 with 3, ...

    Each pair has a choice and a lambda of its own, which are functions of seed, step and pair. (timm and
    torchvision draw once for a process's batch, so what a step sees depends on how many processes
    there are; one draw for each batch of batch-norm would not, but makes a step's gradient noisier.)
    Both samples of a pair take the same share of each other. As in torchvision, a cutmix box is
    clipped at the borders and its true area is what the targets get.

    Args:
        options: see :class:`Mix`.
        num_classes: of the dataset.
        stream: of the random numbers.
    """

    def __init__(self, options: Mix, num_classes: int, stream: int) -> None:
        self._options = options
        self._num_classes = num_classes
        self._stream = stream

    def __call__(self, batch: Batch, step: Step) -> Batch:
        """Images and targets of both kinds, mixed; targets become shares."""
        options, device = self._options, batch.images.device
        height, width = batch.images.shape[2:]
        shares, boxes = draw_pairs(
            np.uint64(step.seed),
            step.number,
            self._stream,
            batch.positions.start // 2,
            len(batch.positions) // 2,
            (options.mixup.at(step.epoch), options.cutmix.at(step.epoch)),
            (options.probability.at(step.epoch), options.switch.at(step.epoch)),
            (height, width),
        )
        kept = torch.from_numpy(shares).repeat_interleave(2).to(device, non_blocking=True)
        cut = torch.from_numpy(boxes[:, 2] > boxes[:, 0]).repeat_interleave(2)
        outside = (~inside(boxes.repeat(2, 0), batch.images)).float()
        # Of a pair that is cut: the neighbour inside of the box, the sample itself outside.
        cut = cut.to(device, non_blocking=True).view(-1, 1, 1, 1)
        weight = torch.where(cut, outside, kept.view(-1, 1, 1, 1))
        targets = batch.targets
        if not targets.is_floating_point():
            targets = F.one_hot(targets, self._num_classes).float()
        return batch._replace(
            images=torch.lerp(_neighbours(batch.images), batch.images, weight),
            targets=torch.lerp(_neighbours(targets), targets, kept[:, None]),
        )


def _neighbours(tensor: Tensor) -> Tensor:
    """The rows [n, ...] with each pair's two exchanged, laid out as before."""
    swapped = torch.empty_like(tensor)
    swapped[0::2], swapped[1::2] = tensor[1::2], tensor[0::2]
    return swapped


@njit
def _log_gamma_variate(
    shape: float, seed: np.uint64, step: int, stream: int, pair: int, which: int
) -> float:
    """The logarithm of a draw from Gamma(shape, 1)."""
    value = 0.0
    for i in range(TRIES):
        drawn, value = log_gamma_try(shape, philox4x32(pair, i, step, stream + which, seed))
        if drawn:
            break
    return value


@njit
def beta(alpha: float, seed: np.uint64, step: int, stream: int, pair: int) -> float:
    """A draw from Beta(alpha, alpha), from the streams ``stream`` and ``stream + 1``."""
    first = _log_gamma_variate(alpha, seed, step, stream, pair, 0)
    second = _log_gamma_variate(alpha, seed, step, stream, pair, 1)
    return 1.0 / (1.0 + math.exp(second - first))


def _build(checksum: int):  # type: ignore[no-untyped-def]
    @njit_cached
    def draw(seed, step, stream, first, alphas, chances, size, shares, boxes):  # type: ignore[no-untyped-def]
        if checksum < 0:
            return
        height, width = size
        for i in range(shares.size):
            pair = first + i
            r0, r1, r2, r3 = philox4x32(pair, 0, step, stream + 2, seed)
            if uniform(r0, 0.0, 1.0) >= chances[0]:
                continue
            cut = alphas[1] > 0 and (alphas[0] <= 0 or uniform(r1, 0.0, 1.0) < chances[1])
            alpha = alphas[1] if cut else alphas[0]
            if alpha <= 0:
                continue
            share = beta(alpha, seed, step, stream, pair)
            if cut:
                half = 0.5 * math.sqrt(1.0 - share)
                y, x = below(r2, height), below(r3, width)
                half_y, half_x = int(half * height), int(half * width)
                top, bottom = max(y - half_y, 0), min(y + half_y, height)
                left, right = max(x - half_x, 0), min(x + half_x, width)
                boxes[i] = top, left, bottom, right
                share = 1.0 - (bottom - top) * (right - left) / (height * width)
            shares[i] = share

    return draw


_draw = _build(CHECKSUM)


def draw_pairs(
    seed: np.uint64,
    step: int,
    stream: int,
    first: int,
    pairs: int,
    alphas: tuple[float, float],
    chances: tuple[float, float],
    size: tuple[int, int],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """How each pair is mixed.

    Args:
        seed: of the run.
        step: counted from the run's start.
        stream: of the random numbers.
        first: number of the first pair in the global batch.
        pairs: of this micro-batch.
        alphas: mixup's and cutmix's; 0 is none.
        chances: that a pair is mixed, and then that it is cut where it could be either.
        size: height and width of the images in pixels.

    Returns:
        float32 [pairs], the share that a sample keeps of itself (1: not mixed), and int64 [pairs, 4],
        top, left, bottom and right of the box that is exchanged (all 0: mixed everywhere alike).
    """
    shares = np.ones(pairs, np.float32)
    boxes = np.zeros((pairs, 4), np.int64)
    alphas, chances = (float(alphas[0]), float(alphas[1])), (float(chances[0]), float(chances[1]))
    _draw(seed, step, stream, first, alphas, chances, size, shares, boxes)
    return shares, boxes
