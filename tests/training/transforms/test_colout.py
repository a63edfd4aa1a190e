"""ColOut against a loop in numpy: which rows and columns are left out, and who sees the smaller images."""

import itertools
import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchvision
from scipy.stats import chi2_contingency, chisquare
from torch import nn

from ffcv_r50 import build, recipe
from ffcv_r50.config import settings
from ffcv_r50.config.settings import Config, Model
from ffcv_r50.data.philox import transform_stream
from ffcv_r50.errors import UserError
from ffcv_r50.tools import flops, show_recipe
from ffcv_r50.tools.estimate import needs
from ffcv_r50.tools.estimate.work import work
from ffcv_r50.training.protocols import Batch, Step
from ffcv_r50.training.transforms.colout import ColOut, draw_kept
from tests.conftest import Dataset

STREAM = transform_stream(0)
STEP = Step(3, 11, 0.5, {})
SIZE = (20, 32)
OPTIONS = ColOut(rows=0.1, columns=0.25)
LIKELY = 1e-4
"""Least probability of what is seen; the numbers are always the same."""


def places(count: int, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """Images whose pixels say where they are: [n, 3, height, width] of row, column and image."""
    image, row, column = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32) for n in (count, *size)), indexing="ij"
    )
    return torch.stack([row, column, image], -1).permute(0, 3, 1, 2)


def left(first: int, size: int, step: Step = STEP, stream: int = STREAM) -> torch.Tensor:
    """What is left of some of them, at their positions in the global batch."""
    positions = range(first, first + size)
    given = Batch(places(50)[first : first + size], torch.zeros(size), torch.zeros(size), positions)
    return OPTIONS.build(10, stream)(given, step).images


def kept(count: int, of: int, samples: int) -> npt.NDArray[np.int64]:
    return draw_kept(np.uint64(1), 0, STREAM, range(samples), of, count)


def test_what_is_left_is_whole_rows_and_columns_in_their_order() -> None:
    images = left(5, 24)
    assert images.shape == (24, 3, 18, 24)
    assert images.is_contiguous(memory_format=torch.channels_last)
    choices = set()
    for i, image in enumerate(images.numpy(), 5):
        rows, columns = image[0, :, 0].astype(int), image[1, 0].astype(int)
        assert (np.diff(rows) > 0).all()
        assert (np.diff(columns) > 0).all()
        expected = np.empty((3, 18, 24), np.float32)
        for (y, row), (x, column) in itertools.product(enumerate(rows), enumerate(columns)):
            expected[:, y, x] = row, column, i
        np.testing.assert_array_equal(image, expected)
        choices.add((*rows, *columns))
    assert len(choices) == 24


@pytest.mark.parametrize("parts", [2, 3, 12])
def test_any_cut_of_the_batch_loses_the_same(parts: int) -> None:
    whole, size = left(0, 24), 24 // parts
    pieces = [left(first, size) for first in range(0, 24, size)]
    assert torch.equal(torch.cat(pieces), whole)


def test_others_in_another_step_seed_and_row_of_the_recipe() -> None:
    whole = left(0, 24)
    for other in (
        left(0, 24, STEP._replace(number=12)),
        left(0, 24, STEP._replace(seed=4)),
        left(0, 24, stream=transform_stream(1)),
    ):
        assert (whole != other).any((1, 2, 3)).all()


def test_any_choice_is_as_likely_as_any_other() -> None:
    """All 20 ways to keep three of six."""
    ways, seen = np.unique(kept(3, 6, 20_000), axis=0, return_counts=True)
    assert [*map(tuple, ways.tolist())] == [*itertools.combinations(range(6), 3)]
    assert chisquare(seen).pvalue > LIKELY
    # Of 176 rows, as in a recipe, 9 are left out, spread evenly.
    lost = np.ones((20_000, 176), bool)
    np.put_along_axis(lost, kept(167, 176, 20_000), False, 1)
    assert (lost.sum(1) == 9).all()
    assert chisquare(lost.sum(0)).pvalue > LIKELY


def test_rows_columns_and_neighbours_are_independent() -> None:
    """Where one row and one column of four stay."""
    count = 10_000
    batch = Batch(places(count, (4, 4)), torch.zeros(count), torch.zeros(count), range(count))
    shown = ColOut(rows=0.75, columns=0.75).build(10, STREAM)(batch, STEP).images
    rows, columns = shown[:, 0, 0, 0].numpy(), shown[:, 1, 0, 0].numpy()
    for one, other in ((rows, columns), (rows[::2], rows[1::2])):
        table = np.histogram2d(one, other, bins=4)[0]
        assert chi2_contingency(table).pvalue > LIKELY


@pytest.mark.parametrize("share", [0.0, 0.05, 0.15, 0.3, 0.7, 0.999])
def test_sizes_are_composers(share: float) -> None:
    """Its ``int((1 - p_row) * row_size)``; but one row stays, where it would fail."""
    for side in (32, 104, 128, 160, 176, 224):
        wanted = max(1, int((1 - share) * side))
        assert ColOut(rows=share, columns=0).size_after(side, side) == (wanted, side)
        assert ColOut(rows=0, columns=share).size_after(side, side) == (side, wanted)
        assert kept(wanted, side, 2).shape == (2, wanted)


# ---------------------------------------------------------------------------- who sees the smaller images


COLOUT = "--augment=[{colout: {rows: 0.1, columns: 0.25}}, {mix: {cutmix: 1}}]"


def config(dataset: Dataset, *more: str) -> Config:
    return settings.load([f"--config={dataset.recipe}", *more], needs_data=False)


def counted(network: nn.Module, size: tuple[int, int]) -> Iterator[int]:
    """Multiply-adds of convolutions and the last layer, counted while an image goes through."""
    found: list[int] = []

    def note(module: nn.Module, _given: object, out: torch.Tensor) -> None:
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        found.append(module.weight[0].numel() * out.numel())

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(note)
    with torch.inference_mode():
        network.eval()(torch.zeros(1, 3, *size))
    yield from found


def test_costs_are_those_of_what_the_network_sees(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = config(dataset, COLOUT)
    assert recipe.seen_size(loaded, 64) == (57, 48)
    ours = flops.count(Model(arch="resnet18"), 10, (57, 48), training=False)
    network = torchvision.models.resnet18(num_classes=10)
    assert sum(ours.values()) == 2 * sum(counted(network, (57, 48)))
    kinds = needs.kinds(loaded, needs.Images(64, 70, 29, 3))
    for kind, size in zip(kinds, ((28, 24), (57, 48)), strict=False):
        assert kind.each == work(loaded.model, 3, size, training=True)
    capsys.readouterr()
    show_recipe.show([str(dataset.recipe), f"--data.train_dataset={dataset.train}", COLOUT])
    page = capsys.readouterr().out
    assert "augment     colout, rows 0.1, columns 0.25; then mix" in page
    assert "input       28 x 24 of 32 px; 57 x 48 of 64 px" in page
    operations = sum(flops.count(loaded.model, 3, (57, 48), training=True).values())
    assert re.search(rf" 2 +64 .* {operations / 1e9:.3f} ", page)


def test_a_network_that_does_not_take_them_is_refused(dataset: Dataset) -> None:
    network = ["--model.arch=alexnet", "--schedule.resolution={0: 64}"]
    network += ["--validation.resolution=64"]
    build.check_sizes(config(dataset, *network), 3)
    with pytest.raises(UserError, match="does not take images of 57 x 48 pixels, 8 at a time"):
        build.check_sizes(config(dataset, *network, COLOUT), 3)
