import os
import re
from pathlib import Path

import numpy as np
import pytest
import torchvision

from ffcv_r50.errors import UserError
from writers import sources


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_images_and_their_order_are_torchvisions(tmp_path: Path) -> None:
    names = (
        "a10.JPEG",
        "a9.jpeg",
        "B.PNG",
        "sub/z.jpg",
        "sub/deeper/y.webp",
        "sub2/x.TIFF",
        "é.bmp",
    )
    root = make(
        tmp_path / "root",
        *(f"{label}/{name}" for label in ("n02", "n010", "Zebra") for name in names),
        "n02/notes.txt",
        "n02/sub/movie.gif",
        "index.csv",
    )
    (root / "linked").symlink_to(root / "n02" / "sub", target_is_directory=True)
    make(tmp_path, "elsewhere/w.jpg")
    (root / "n02" / "sub" / "far").symlink_to(tmp_path / "elsewhere")
    ours = sources.image_folder(root)
    theirs = torchvision.datasets.ImageFolder(str(root))
    assert [
        (os.path.join(root, p), label) for p, label in zip(ours.paths, ours.labels, strict=True)
    ] == (theirs.samples)
    assert ours.classes == theirs.classes
    assert ours.ignored == 4  # notes.txt, movie.gif twice, index.csv


def test_extensions_are_torchvisions() -> None:
    assert sources.EXTENSIONS == torchvision.datasets.folder.IMG_EXTENSIONS


@pytest.mark.parametrize(
    ("tree", "data_dir", "split", "expected"),
    [
        (("data/train/c/x.jpg", "data/val/c/x.jpg"), "data", "val", "data/val"),
        (("data/train/c/x.jpg", "data/val/c/x.jpg"), "data/val", "val", "data/val"),
        (("data/c/x.jpg",), "data", "val", "data"),
    ],
)
def test_the_classes_lie_in_the_folder_or_in_the_split_below_it(
    tmp_path: Path, tree: tuple[str, ...], data_dir: str, split: str, expected: str
) -> None:
    make(tmp_path, *tree)
    assert sources.find_root(str(tmp_path / data_dir), split) == tmp_path / expected


@pytest.mark.parametrize(
    ("tree", "data_dir", "message"),
    [
        ((), "nowhere", "cfg.data_dir: {}/nowhere is not a folder; check the path"),
        (
            ("data/train/c/x.jpg",),
            "data",
            "cfg.data_dir: {}/data holds 'train' but no 'val'; pass --cfg.split=train or the folder of "
            "the classes",
        ),
        (
            ("train/c/x.jpg",),
            "train",
            "cfg.data_dir: {}/train looks like the split 'train', not 'val'; pass --cfg.split=train",
        ),
    ],
)
def test_a_wrong_folder_is_refused(
    tmp_path: Path, tree: tuple[str, ...], data_dir: str, message: str
) -> None:
    make(tmp_path, *tree)
    with pytest.raises(UserError, match=re.escape(message.format(tmp_path)) + "$"):
        sources.find_root(str(tmp_path / data_dir), "val")


def test_no_classes(tmp_path: Path) -> None:
    make(tmp_path, "loose.jpg")
    with pytest.raises(UserError, match=r"has no class folders; expected .*/<class>/<image>.JPEG$"):
        sources.image_folder(tmp_path)


def test_a_class_without_images(tmp_path: Path) -> None:
    make(tmp_path, "a/x.jpg", "b/readme.txt", "c/x.gif", "d/x.png")
    with pytest.raises(
        UserError, match=r"2 of 4 class folders hold no images, the first is 'b'; fill"
    ):
        sources.image_folder(tmp_path)


def test_a_folder_that_cannot_be_listed_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a/x.jpg", "a/sub/y.jpg")
    listing = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root, who runs CI, may list everything
    with pytest.raises(
        UserError, match=r"a/sub: cannot be listed \(Permission denied\); check its"
    ):
        sources.image_folder(tmp_path)


PATHS = [f"n{i % 100:08}/n{i % 100:08}_{i}.JPEG" for i in range(20_000)]


def test_draws_are_uniform_and_independent_of_each_other() -> None:
    draws = {
        (seed, purpose): np.array([sources.draw(seed, purpose, path) for path in PATHS])
        for seed, purpose in ((0, "compress"), (1, "compress"), (0, "subset"))
    }
    for values in draws.values():
        assert values.min() >= 0
        assert values.max() < 1
        # Each of 20 bins is binomial; 5 sigma leaves one failure in 30,000 choices of a hash.
        bins = np.histogram(values, 20, (0, 1))[0]
        assert np.abs(bins - 1000).max() < 5 * np.sqrt(1000 * 0.95)
    base, *others = draws.values()
    for other in others:
        assert abs(np.corrcoef(base, other)[0, 1]) < 5 / np.sqrt(len(PATHS))


def test_draws_never_change() -> None:
    # A dataset written next year must hold the same images raw.
    assert sources.draw(0, "compress", "n01440764/n01440764_10026.JPEG") == 0.5478791910485181


def source(paths: list[str]) -> sources.Source:
    return sources.Source(Path("root"), ["a"], paths, list(range(len(paths))), 0)


def test_subsets_are_reproducible_nested_and_over_all_classes() -> None:
    small = sources.subset(source(PATHS), 500, seed=3)
    large = sources.subset(source(PATHS), 1000, seed=3)
    assert len(small.paths) == 500
    assert set(small.paths) < set(large.paths)
    assert [PATHS[i] for i in small.labels] == small.paths  # labels went along
    assert small.labels == sorted(small.labels)
    assert len({path.split("/")[0] for path in large.paths}) == 100
    assert sources.subset(source(PATHS), 500, seed=4).paths != small.paths
    # Images that were not chosen have no influence.
    fewer = [path for path in PATHS if path in set(large.paths)]
    assert sources.subset(source(fewer), 500, seed=3).paths == small.paths
    assert sources.subset(source(PATHS), len(PATHS), seed=3).paths == PATHS


@pytest.mark.parametrize("count", [0, 4])
def test_a_subset_must_be_there(count: int) -> None:
    with pytest.raises(UserError, match=f"cfg.subset: root has 3 images, cannot take {count}$"):
        sources.subset(source(PATHS[:3]), count, seed=0)


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = make(tmp_path, "a/1.jpg", "b/2.jpg")
    (root / "a" / "around").symlink_to(root / "a")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "more").symlink_to(make(tmp_path.parent / "elsewhere", "3.jpg"))
    assert sources.image_folder(root).paths == ["a/1.jpg", "a/more/3.jpg", "b/2.jpg"]
    (root / "a" / "up").unlink()
    (root / "a" / "to").symlink_to(root / "b")
    (root / "b" / "fro").symlink_to(root / "a")
    assert sources.image_folder(root).paths == [
        *("a/1.jpg", "a/more/3.jpg", "a/to/2.jpg"),
        *("b/2.jpg", "b/fro/1.jpg", "b/fro/more/3.jpg"),
    ]
