"""The seam for sources: one more file, used by name through the ordinary program."""

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ffcv_r50.data.beton import Beton
from writers.sources.image_folder import ImageFolder

REPOSITORY = Path(__file__).parents[2]
NAMES = [f"{'abc'[i % 3]}/{i}.png" for i in range(12)]
PROGRAM = (
    "from tests.writers import zip_source; from writers import write_imagenet; write_imagenet.run()"
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A dozen images as files, and in an archive beside."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
        for name in NAMES:
            path = tmp_path / "tree" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
            archive.write(path, name)
    return tmp_path / "tree"


def write(dataset: str, source: Path, target: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            *(sys.executable, "-c", PROGRAM, f"--cfg.dataset={dataset}"),
            *(f"--cfg.data_dir={source}", f"--cfg.write_path={target}"),
            *("--cfg.write_mode=proportion", "--cfg.num_workers=2", "--cfg.chunk_size=2"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_source_of_ones_own_is_used_by_name(tree: Path, tmp_path: Path) -> None:
    """The same images under the same names, so the same bytes as from the folder."""
    files = []
    for dataset, source in (("imagenet", tree), ("zip", tree.with_suffix(".zip"))):
        files.append(tmp_path / f"{dataset}.beton")
        done = write(dataset, source, files[-1])
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{source}: 12 images of 3 classes\n")
        sidecar = Beton(files[-1]).sidecar
        assert sidecar is not None
        assert sidecar.source == str(source)
        assert sidecar.settings["dataset"] == dataset
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_sample_that_cannot_be_read_is_named(tree: Path, tmp_path: Path) -> None:
    archive = tree.with_suffix(".zip")
    pixels = (tree / "b" / "7.png").read_bytes()
    content = bytearray(archive.read_bytes())
    content[content.index(pixels) + len(pixels) // 2] ^= 1
    archive.write_bytes(content)
    done = write("zip", archive, tmp_path / "x.beton")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {archive}/b/7.png: Bad CRC-32 for file 'b/7.png'; repair or remove it, or leave "
        "out such images with --cfg.on_error=skip\n"
    )
    assert not (tmp_path / "x.beton").exists()


def test_what_workers_are_sent_does_not_grow_with_the_dataset() -> None:
    def size(count: int) -> int:
        names = [f"n{i:07}.jpg" for i in range(count)]
        folder = ImageFolder(Path("root"), ["a"], names, [0] * count, 0)
        return len(pickle.dumps(folder.reader(0)))

    assert size(10_000) == size(1) < 200
