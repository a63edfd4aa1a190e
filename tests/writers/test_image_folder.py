"""Which files of a tree are images, in which order, under which label."""

import os
import re
from pathlib import Path

import pytest
import torchvision

from ffcv_r50.errors import UserError
from writers.sources import BadImage, image_folder


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
    ours = image_folder.list_images(root)
    theirs = torchvision.datasets.ImageFolder(str(root))
    assert [
        (os.path.join(root, p), label) for p, label in zip(ours.names, ours.labels, strict=True)
    ] == (theirs.samples)
    assert ours.classes == theirs.classes
    assert ours.ignored == 4  # notes.txt, movie.gif twice, index.csv


def test_extensions_are_torchvisions() -> None:
    assert image_folder.EXTENSIONS == torchvision.datasets.folder.IMG_EXTENSIONS


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
    assert image_folder.find_root(str(tmp_path / data_dir), split) == tmp_path / expected


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
        image_folder.find_root(str(tmp_path / data_dir), "val")


def test_no_classes(tmp_path: Path) -> None:
    make(tmp_path, "loose.jpg")
    with pytest.raises(UserError, match=r"has no class folders; expected .*/<class>/<image>.JPEG$"):
        image_folder.list_images(tmp_path)


def test_a_class_without_images(tmp_path: Path) -> None:
    make(tmp_path, "a/x.jpg", "b/readme.txt", "c/x.gif", "d/x.png")
    with pytest.raises(
        UserError, match=r"2 of 4 class folders hold no images, the first is 'b'; fill"
    ):
        image_folder.list_images(tmp_path)


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
        image_folder.list_images(tmp_path)


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = make(tmp_path, "a/1.jpg", "b/2.jpg")
    (root / "a" / "around").symlink_to(root / "a")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "more").symlink_to(make(tmp_path.parent / "elsewhere", "3.jpg"))
    assert image_folder.list_images(root).names == ["a/1.jpg", "a/more/3.jpg", "b/2.jpg"]
    (root / "a" / "up").unlink()
    (root / "a" / "to").symlink_to(root / "b")
    (root / "b" / "fro").symlink_to(root / "a")
    assert image_folder.list_images(root).names == [
        *("a/1.jpg", "a/more/3.jpg", "a/to/2.jpg"),
        *("b/2.jpg", "b/fro/1.jpg", "b/fro/more/3.jpg"),
    ]


def test_a_pipe_is_no_image_and_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    with pytest.raises(BadImage, match="not a regular file"):
        image_folder.read_file(str(pipe))
