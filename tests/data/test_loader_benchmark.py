"""The benchmark of the loaders runs, and its rows have the promised keys."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torchvision import transforms

from benchmarks import loader
from ffcv_r50.errors import UserError
from ffcv_r50.training.transforms import TRANSFORMS, ImageOptions
from ffcv_r50.training.transforms.color_jitter import ColorJitter

REPOSITORY = Path(__file__).parents[2]
KEYS = {
    "loader",
    "resolution",
    "workers",
    "images_per_second",
    "images_per_second_min",
    "images_per_second_max",
    "rss_mb",
    "first_batch_seconds",
}


def measured(folder: Path, images: list[Image.Image], *arguments: str) -> tuple[Any, str]:
    """The rows that the benchmark writes of a few images, and what it prints."""
    for i, image in enumerate(images):
        path = folder / "images" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    done = subprocess.run(
        [
            *(sys.executable, str(REPOSITORY / "benchmarks" / "loader.py")),
            *("--images", str(folder / "images"), "--resolution=32", "--workers=1"),
            *("--batch-size=16", f"--json={folder}/rows.json", *arguments),
        ],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stdout
    return json.loads((folder / "rows.json").read_text()), done.stdout


@pytest.mark.slow
# FFCV compiles its pipelines at every start, and a busy machine takes minutes
@pytest.mark.timeout(600)
def test_the_loader_benchmark(tmp_path: Path, make_image: Callable[..., Any]) -> None:
    """On a few images; that our loader reads a file of stock FFCV's writer is part of it."""
    images = [Image.fromarray(make_image(60, 80, i)) for i in range(6)]
    rows, printed = measured(
        tmp_path, images, "--rounds=2", "--images-per-round=64", f"--chart={tmp_path}/chart.png"
    )
    loaders = {row["loader"] for row in rows} - {"dali"}
    assert loaders == {"stock_ffcv", "ours_stock_file", "ours_tiled_file", "torchvision"}
    for row in rows:
        assert set(row) == KEYS
        assert row["images_per_second_min"] <= row["images_per_second"]
        assert 0 < row["images_per_second"] <= row["images_per_second_max"]
    assert {row["resolution"] for row in rows} == {32}
    assert (tmp_path / "chart.png").stat().st_size > 1000
    assert "| 32 | ours_tiled_file |" in printed


@pytest.mark.slow
def test_what_an_augmentation_costs(tmp_path: Path, make_image: Callable[..., Any]) -> None:
    images = [Image.fromarray(make_image(60, 80, i)) for i in range(4)]
    more = ("--rounds=1", "--images-per-round=32", "--augment=randaugment")
    rows, _ = measured(tmp_path, images, *more)
    assert [row["loader"] for row in rows] == [
        "torchvision_augmented",
        "ours_tiled_file",
        "ours_augmented",
    ]
    assert all(row["images_per_second"] > 0 for row in rows)


def test_both_loaders_augment_alike() -> None:
    """The same method under both names, at the same strengths where torchvision has no default."""
    for name, make in loader.AUGMENTATIONS.items():
        assert issubclass(TRANSFORMS[name], ImageOptions)
        assert name.replace("_", "") in type(make(transforms)).__name__.lower()
    ours, theirs = ColorJitter(), loader.AUGMENTATIONS["color_jitter"](transforms)
    for name in ("brightness", "contrast", "saturation"):
        strength = getattr(ours, name).at(0)
        assert getattr(theirs, name) == (1 - strength, 1 + strength)
    assert (ours.hue.at(0), ours.probability.at(0), theirs.hue) == (0, 1, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loaders=ours"], "--loaders=ours: no 'ours'; choose stock_ffcv or ours_stock_file or "),
        (["--augment=erasing"], "--augment=erasing: choose augmix or auto_augment or "),
        (["--loaders=dali", "--augment=randaugment"], "--loaders and --augment: give one of them"),
    ],
)
def test_loaders_that_cannot_be_measured(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["loader.py", "--images=nowhere", *arguments])
    with pytest.raises(UserError, match=message):
        loader.main()


def test_a_folder_without_images_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks" / "loader.py", "--images", tmp_path],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no images found" in done.stderr
