"""Random erasing against torchvision's."""

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomErasing as Reference

from ffcv_r50.data.philox import transform_stream
from ffcv_r50.keyframes import Varying
from ffcv_r50.training.protocols import Batch, Step
from ffcv_r50.training.transforms.erasing import Erasing, draw_boxes

STREAM = transform_stream(0)


def erased(first: int, size: int, options: Erasing, step: Step) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(50, 3, 16, 20, generator=generator)[first : first + size]
    positions = range(first, first + size)
    given = Batch(images, torch.zeros(size), torch.arange(size), positions)
    return options.build(10, STREAM)(given, step).images


@pytest.mark.parametrize("parts", [2, 3, 12])
def test_any_cut_of_the_batch_is_erased_alike(parts: int) -> None:
    options, step = Erasing(probability=Varying(0.7)), Step(3, 11, 0.5, {})
    whole = erased(0, 24, options, step)
    size = 24 // parts
    pieces = [erased(first, size, options, step) for first in range(0, 24, size)]
    assert torch.equal(torch.cat(pieces), whole)
    assert not torch.equal(erased(0, 24, options, step._replace(number=12)), whole)


def test_a_box_is_zero_and_the_rest_untouched() -> None:
    options, step = Erasing(probability=Varying(1.0)), Step(3, 11, 0.5, {})
    images, boxes = (
        erased(0, 24, options, step),
        draw_boxes(np.uint64(3), 11, STREAM, range(24), 1.0, options.area, options.ratio, (16, 20)),
    )
    before = erased(0, 24, Erasing(probability=Varying(0.0)), step)
    for i, (top, left, bottom, right) in enumerate(boxes.tolist()):
        assert bottom > top
        assert right > left
        before[i, :, top:bottom, left:right] = 0
    assert torch.equal(images, before)


def test_sizes_and_places_are_distributed_as_torchvisions() -> None:
    """Two-sample Kolmogorov-Smirnov at 0.1 %: heights, widths, tops, lefts."""
    count, size = 6000, (64, 96)
    torch.manual_seed(0)
    image = torch.zeros(3, *size)
    reference = np.array(
        [Reference.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(count)]
    )
    boxes = draw_boxes(np.uint64(1), 0, STREAM, range(count), 1.0, (0.02, 0.33), (0.3, 3.3), size)
    top, left, bottom, right = boxes.T
    for ours, theirs in zip((top, left, bottom - top, right - left), reference.T, strict=True):
        grid = np.union1d(ours, theirs)
        distance = np.abs(
            np.searchsorted(np.sort(ours), grid, "right")
            - np.searchsorted(np.sort(theirs), grid, "right")
        ).max()
        assert distance / count < 1.95 * np.sqrt(2 / count)


def test_as_many_as_asked_and_tapering() -> None:
    boxes = draw_boxes(
        np.uint64(1), 0, STREAM, range(20_000), 0.25, (0.02, 0.33), (0.3, 3.3), (32, 32)
    )
    assert boxes.any(1).mean() == pytest.approx(0.25, abs=0.013)  # four standard deviations
    options = Erasing(probability=Varying({0: 1, 5: 0}))
    early, late = (erased(0, 50, options, Step(3, 11, epoch, {})) for epoch in (0.0, 5.0))
    assert (early == 0).any()
    assert not (late == 0).any()
