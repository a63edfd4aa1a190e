"""Random erasing (Zhong et al. 2020, arXiv:1708.04896)."""

import math
from typing import Annotated

import numpy as np
import numpy.typing as npt

from ffcv_r50.data.compiled import CHECKSUM, njit_cached
from ffcv_r50.data.philox import below, philox4x32, uniform
from ffcv_r50.keyframes import Varying
from ffcv_r50.registry import Range, check_ordered
from ffcv_r50.training.protocols import Batch, Step, Transform
from ffcv_r50.training.transforms import TRANSFORMS, BatchOptions
from ffcv_r50.training.transforms.boxes import inside

TRIES = 10
"""To find a box that fits into the image, as torchvision."""

Area = Annotated[float, Range(above=0, at_most=1)]


@TRANSFORMS.register("erasing")
class Erasing(BatchOptions):
    """A box of some of the images becomes the mean colour, `data.mean`."""

    probability: Annotated[Varying, Range(at_least=0, at_most=1)] = Varying(0.5)
    """That an image has a box erased."""
    area: tuple[Area, Area] = (0.02, 0.33)
    """Of the box, lowest and highest, as a share of the image's."""
    ratio: tuple[Annotated[float, Range(above=0)], Annotated[float, Range(above=0)]] = (0.3, 3.3)
    """Height / width of the box, lowest and highest."""

    def model_post_init(self, _context: object) -> None:
        """Refuse what is no range."""
        check_ordered(self, "area", "ratio")

    def build(self, num_classes: int, stream: int) -> Transform:
        """See :class:`RandomErasing`."""
        return RandomErasing(self, stream)


class RandomErasing:
    """torchvision's ``RandomErasing`` with its default value 0, which is the mean of normalised images.

    Where a box lies is a function of seed, step and position in the global batch.

    Args:
        options: see :class:`Erasing`.
        stream: of the random numbers.
    """

    def __init__(self, options: Erasing, stream: int) -> None:
        self._options = options
        self._stream = stream

    def __call__(self, batch: Batch, step: Step) -> Batch:
        """Erase in the images, in place."""
        options = self._options
        height, width = batch.images.shape[2:]
        boxes = draw_boxes(
            np.uint64(step.seed),
            step.number,
            self._stream,
            batch.positions,
            options.probability.at(step.epoch),
            options.area,
            options.ratio,
            (height, width),
        )
        images = batch.images.masked_fill_(inside(boxes, batch.images), 0.0)
        return batch._replace(images=images)


def _build(checksum: int):  # type: ignore[no-untyped-def]
    @njit_cached
    def draw(seed, step, stream, first, probability, area, ratio, size, boxes):  # type: ignore[no-untyped-def]
        if checksum < 0:
            return
        height, width = size
        log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
        for i in range(len(boxes)):
            position = first + i
            r0, _, _, _ = philox4x32(position, 0, step, stream, seed)
            if uniform(r0, 0.0, 1.0) >= probability:
                continue
            for j in range(TRIES):
                r0, r1, r2, r3 = philox4x32(position, j, step, stream + 1, seed)
                target = height * width * uniform(r0, area[0], area[1])
                aspect = math.exp(uniform(r1, log_low, log_high))
                h = int(round(math.sqrt(target * aspect)))
                w = int(round(math.sqrt(target / aspect)))
                if h < height and w < width:
                    top, left = below(r2, height - h + 1), below(r3, width - w + 1)
                    boxes[i] = top, left, top + h, left + w
                    break

    return draw


_draw = _build(CHECKSUM)


def draw_boxes(
    seed: np.uint64,
    step: int,
    stream: int,
    positions: range,
    probability: float,
    area: tuple[float, float],
    ratio: tuple[float, float],
    size: tuple[int, int],
) -> npt.NDArray[np.int64]:
    """Where each image is erased: the boxes of torchvision's ``RandomErasing.get_params``.

    Args:
        seed: of the run.
        step: counted from the run's start.
        stream: of the random numbers.
        positions: of the samples in the global batch.
        probability: that there is a box.
        area, ratio: of the box, see :class:`Erasing`.
        size: height and width of the images in pixels.

    Returns:
        int64 [n, 4]: top, left, bottom, right; all 0 where nothing is erased.
    """
    boxes = np.zeros((len(positions), 4), np.int64)
    _draw(seed, step, stream, positions.start, float(probability), area, ratio, size, boxes)
    return boxes
