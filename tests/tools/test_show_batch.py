"""The picture of a batch, and what it says to wrong commands."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ffcv_r50.data.beton import Beton
from ffcv_r50.data.loader import TrainLoader
from ffcv_r50.errors import UserError
from ffcv_r50.report.batches import SHOWN_CLASSES as LINES
from ffcv_r50.report.sheet import MARGIN, TEXT_HEIGHT
from ffcv_r50.tools import show_batch
from tests.conftest import Dataset


def shown(dataset: Dataset, output: Path, *more: str) -> Image.Image:
    command = [str(dataset.recipe), f"--data.train_dataset={dataset.train}", f"--output={output}"]
    show_batch.show([*command, *more])
    return Image.open(output).convert("RGB")


def test_it_shows_the_images_of_the_step(dataset: Dataset, tmp_path: Path) -> None:
    """Those of the loader as two processes cut it; 64 px in epoch 2, enlarged twice."""
    loader = TrainLoader(
        Beton(dataset.train), seed=0, batch_size=32, micro_batch_size=8, world_size=2,
        crop_scale=(0.3, 1.0),
    )  # fmt: skip
    with loader.epoch(2, 64, first_step=1) as epoch:
        expected = next(epoch).images.numpy()[:5].copy()
    sheet = np.asarray(shown(dataset, tmp_path / "a.png", "--epoch=2", "--step=1", "--images=5"))
    cell = (128 + MARGIN, 128 + TEXT_HEIGHT + MARGIN)
    assert sheet.shape == (2 * cell[1] + MARGIN, 3 * cell[0] + MARGIN, 3)
    for i, image in enumerate(expected):
        left, top = MARGIN + i % 3 * cell[0], MARGIN + i // 3 * cell[1]
        found = sheet[top : top + 128 : 2, left : left + 128 : 2].astype(int)
        assert np.abs(found - image).max() <= 1  # normalised and back
        assert (sheet[top + 129 : top + 139, left : left + 128] < 128).any()  # its class


def test_images_need_not_be_square(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """64 px in epoch 2; what ColOut leaves is enlarged by the same factor both ways."""
    words = ["--epoch=2", "--images=1", "--augment=[{colout: {rows: 0.1, columns: 0.25}}]"]
    sheet = shown(dataset, tmp_path / "a.png", *words)
    assert sheet.size == (3 * 48 + 2 * MARGIN, 3 * 57 + TEXT_HEIGHT + 2 * MARGIN)
    assert "1 of the 32 images of step 0 in epoch 2, 57 x 48 px" in capsys.readouterr().out


def test_a_mixed_image_names_two_classes(dataset: Dataset, tmp_path: Path) -> None:
    def second_lines(name: str, *more: str) -> int:
        sheet = np.asarray(shown(dataset, tmp_path / name, "--images=32", *more))
        cell = (128 + MARGIN, 128 + LINES * TEXT_HEIGHT + MARGIN)
        tops = range(MARGIN + 128 + TEXT_HEIGHT, len(sheet), cell[1])
        lefts = range(MARGIN, sheet.shape[1] - 1, cell[0])
        return sum(
            bool((sheet[top : top + TEXT_HEIGHT, left : left + 128] < 128).any())
            for top in tops
            for left in lefts
        )

    plain = shown(dataset, tmp_path / "plain.png", "--images=32")
    assert plain.height == 6 * (128 + TEXT_HEIGHT + MARGIN) + MARGIN  # no room for a second line
    # Two of three classes, on average, in two of three pairs.
    assert 8 <= second_lines("mixed.png", "--augment=[{mix: {mixup: 5}}]") <= 32


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--epoch=3", "command line: --epoch=3: the recipe has 3, from 0"),
        ("--step=2", "command line: --step=2: an epoch has 2, from 0"),
        ("--images=0", "command line: --images: expected an integer at least 1"),
        ("--data.seed=1", "command line: --data.seed"),
        ("--augment=[{mixup: {}}]", "there is no transform 'mixup'"),
    ],
)
def test_what_cannot_be_shown(dataset: Dataset, tmp_path: Path, word: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        shown(dataset, tmp_path / "a.png", word)
    assert message in str(raised.value)
    assert not (tmp_path / "a.png").exists()


def test_an_output_that_is_no_image_and_data_that_nobody_named(
    dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"give it the name of an image, such as \.png"):
        shown(dataset, tmp_path / "a.txt")
    with pytest.raises(UserError, match="cannot be written"):
        shown(dataset, tmp_path / "nowhere" / "a.png")
    with pytest.raises(UserError, match=r"pass --data\.train_dataset=PATH"):
        show_batch.show([str(dataset.recipe)])
