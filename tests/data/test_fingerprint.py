"""The fingerprint of a step's data: of what the loader gives, whoever gives it, and of nothing less."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffcv_r50.data.beton import Beton
from ffcv_r50.data.crops import random_crop, random_flip
from ffcv_r50.data.loader import TrainLoader
from tests.conftest import Dataset

BATCH = 16
SETTINGS: dict[str, Any] = {
    "seed": 7,
    "batch_size": BATCH,
    "micro_batch_size": 4,
    "crop_scale": (0.3, 1.0),
    "repeats": 2,
}


def philox(counter: list[int], key: int) -> list[int]:
    """Philox4x32-10 in plain integers, from the paper's figure."""
    x, k = list(counter), [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        p, q = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [q >> 32 ^ x[1] ^ k[0], q & 0xFFFFFFFF, p >> 32 ^ x[3] ^ k[1], p & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return x


def expected(beton: Beton, epoch: int, indices: list[int], labels: list[int]) -> str:
    """From the batches that the loader gave, of two views of each sample."""
    total, seed = 0, np.uint64(SETTINGS["seed"])
    for position, (index, label) in enumerate(zip(indices, labels, strict=True)):
        repetition = int(index in indices[:position])
        view = index + (repetition << 32)
        size = int(beton.heights[index]), int(beton.widths[index])
        ratio = (3 / 4, 4 / 3)
        top, left, height, width = random_crop(
            seed, epoch, view, *size, SETTINGS["crop_scale"], ratio
        )
        flip = random_flip(seed, epoch, view, 0.5)
        counter = [index, 2 * repetition + flip, (top << 16) + left, (height << 16) + width]
        first, second, _, _ = philox(counter, (label << 32) + position)
        total += (first << 32) + second
    return f"{total % 2**64:016x}"


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_it_is_of_what_the_ranks_are_given(dataset: Dataset, ranks: int) -> None:
    beton = Beton(dataset.train)
    loaders = [TrainLoader(beton, rank=rank, world_size=ranks, **SETTINGS) for rank in range(ranks)]
    epoch, step = 1, 2
    indices, labels = [], []
    for loader in loaders:
        with loader.epoch(epoch, 32, step) as batches:
            for _ in range(BATCH // 4 // ranks):
                batch = next(batches)
                indices += batch.indices.tolist()
                labels += batch.labels.tolist()
    assert len(indices) == BATCH
    for loader in loaders:
        assert loader.fingerprint(epoch, step) == expected(beton, epoch, indices, labels)


def test_whatever_changes_changes_it(dataset: Dataset, tmp_path: Path) -> None:
    from tests.run.test_identity import change

    beton = Beton(dataset.train)
    other = tmp_path / "other.beton"
    other.write_bytes(dataset.train.read_bytes())
    change(other, "label")
    [step] = [s for s, views in enumerate(_loader(beton).views(0)) if 0 in views]
    changed: list[tuple[Beton, dict[str, Any]]] = [
        (Beton(other), {}),
        (beton, {"seed": 8}),
        (beton, {"crop_scale": (0.4, 1.0)}),
        (beton, {"crop_ratio": (0.7, 4 / 3)}),
        (beton, {"flip": 0.6}),
        (beton, {"repeats": 1}),
        (beton, {"order": "quasi_random"}),
    ]
    found = [_loader(*settings).fingerprint(0, step) for settings in changed]
    found += [_loader(beton).fingerprint(*place) for place in ((0, step), (0, step - 1), (1, step))]
    assert len(set(found)) == len(found)


def _loader(beton: Beton, more: dict[str, Any] | None = None) -> TrainLoader:
    return TrainLoader(beton, **(SETTINGS | (more or {})))
