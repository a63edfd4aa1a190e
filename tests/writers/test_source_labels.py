"""From what a dataset says of its images to labels; which shards are of a split; chosen classes."""

import os
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import timm

from ffcv_r50.errors import UserError
from tests.writers import source_formats as made
from tests.writers.source_formats import TRAIN, VAL, WNIDS
from writers import selection
from writers.config import Writing
from writers.sources import ilsvrc_tars, image_folder, shards
from writers.sources.labels import Labels

CLASSES = Path(selection.__file__).parent / "classes"


def resolve(
    said: Sequence[str], known: Sequence[str] | None = None
) -> tuple[list[str], Sequence[int]]:
    labels = Labels()
    for word in said:
        labels.add(word)
    classes, numbers = labels.resolve(lambda i: f"image {i}", known)
    return classes, list(numbers)


@pytest.mark.parametrize(
    ("said", "known", "classes", "labels"),
    [
        (["b", "a", "b"], None, ["a", "b"], [1, 0, 1]),
        (["2", "0", "2"], None, ["0", "1", "2"], [2, 0, 2]),
        (["10", "9"], None, [str(i) for i in range(11)], [10, 9]),  # in the order of numbers
        (["9" * 5000, "7"], None, ["7", "9" * 5000], [1, 0]),
        (["07", "7"], None, ["07", "7"], [0, 1]),  # names, as 07 is no number
        (["2", "x"], None, ["2", "x"], [0, 1]),
        (["c", "a"], ["c", "b", "a"], ["c", "b", "a"], [0, 2]),
        (["2", "0"], ["c", "b", "a"], ["c", "b", "a"], [2, 0]),
        (["2", "10"], ["1", "10", "2"], ["1", "10", "2"], [2, 1]),  # names, which are numbers
    ],
)
def test_labels(
    said: list[str], known: list[str] | None, classes: list[str], labels: list[int]
) -> None:
    assert resolve(said, known) == (classes, labels)


@pytest.mark.parametrize(
    ("said", "known", "message"),
    [
        (["a", "a", "", "a"], None, "^image 2: has no label; add it$"),
        (["a", ""], ["a"], "^image 1: has no label"),
        (["0", "-1", "-1"], None, "^image 1: label -1 is out of range; labels are numbers from 0"),
        (["0", "9" * 9], None, "^image 1: label 999999999 is out of range"),
        (["0", "3"], ["a", "b", "c"], "^image 1: label 3 is out of range; there are 3 classes$"),
        (["2", "0"], ["1", "10", "2"], "^image 1: label 0 is out of range"),
        (
            ["n01440764", "n0144076"],
            WNIDS,
            "^image 1: there is no class 'n0144076'; did you mean n01",
        ),
        (["a", "\ud800"], None, r"^image 1: class '.ud800' is no text; rename it$"),
        (["zebra"], ["a", "b"], "^image 0: there is no class 'zebra'; the first is 'a'$"),
    ],
)
def test_labels_that_are_none(said: list[str], known: Sequence[str] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(said, known)


# ------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize(
    ("files", "split", "expected"),
    [
        (["b.tar", "a.tar", "x.json"], "train", ["a.tar", "b.tar"]),
        (["in-train-1.tar", "in-val-1.tar"], "val", ["in-val-1.tar"]),
        (["validation_0.tar", "train_0.tar", "test_0.tar"], "val", ["validation_0.tar"]),
        (["data/train-0.tar", "data/valid-0.tar"], "val", ["data/valid-0.tar"]),
        (["train/0.tar", "val/1.tar"], "val", ["val/1.tar"]),
        (["strainer-0.tar"], "val", ["strainer-0.tar"]),  # no word of a split
        (["train/test-0.tar"], "train", ["train/test-0.tar"]),  # the folder says it
        (
            ["train-00001-of-00002-ab12.tar", "train-00000-of-00002-cd34.tar"],
            "train",
            ["train-00000-of-00002-cd34.tar", "train-00001-of-00002-ab12.tar"],
        ),
    ],
)
def test_shards_of_a_split(
    files: list[str], split: str, expected: list[str], tmp_path: Path
) -> None:
    made.tree(tmp_path, dict.fromkeys(files, b""))
    assert shards.find(str(tmp_path), split, ".tar") == [tmp_path / name for name in expected]
    assert shards.find(str(tmp_path / expected[0]), split, ".tar") == [tmp_path / expected[0]]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.zip"], "holds no .tar files; check the path"),
        (["test-0.tar"], "holds no .tar files of the split 'val', but test-0.tar; check"),
        (["val-0-of-3.tar"], "2 of 3 shards are missing, the first is val-1-of-3; the download"),
        (["val-001-of-002.tar"], "1 of 2 shards are missing, the first is val-000-of-002;"),
    ],
)
def test_shards_that_are_not_there(files: list[str], message: str, tmp_path: Path) -> None:
    made.tree(tmp_path, dict.fromkeys(files, b""))
    with pytest.raises(UserError, match=message):
        shards.find(str(tmp_path), "val", ".tar")


# ------------------------------------------------------------------------------ chosen classes


def chosen(tmp_path: Path, lines: str) -> selection.ChosenClasses:
    tree = made.tree(tmp_path / "tree", TRAIN)
    (tmp_path / "classes.txt").write_text(lines)
    return selection.of_classes(image_folder.list_images(tree), tmp_path / "classes.txt")


def test_chosen_classes_are_labelled_by_their_line(tmp_path: Path) -> None:
    order = [WNIDS[2], WNIDS[0]]
    source = chosen(tmp_path, f"\ufeff# two of three\n{order[0]}\r\n\n  {order[1]}")
    expected = [(n, order.index(n[:9])) for n in TRAIN if n[:9] in order]
    assert [(n, label) for n, label in zip(source.names, source.labels, strict=True)] == expected
    assert source.classes == order
    assert source.root == tmp_path / "tree"
    for i, (name, _) in enumerate(expected):
        assert source.reader(i)() == TRAIN[name]
        assert source.place(i) == str(tmp_path / "tree" / name)


def test_chosen_classes_come_before_a_subset(tmp_path: Path) -> None:
    chosen(tmp_path, WNIDS[1])
    cfg = Writing(
        data_dir=str(tmp_path / "tree"), write_path="x", classes=str(tmp_path / "classes.txt")
    )
    resolved, source = selection.source(cfg)
    assert resolved == cfg.model_copy(update={"dataset": "imagenet"})
    assert len(source.names) == 4
    with pytest.raises(UserError, match="has 4 images, cannot take 5"):
        selection.subset(source, 5, seed=0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("# nothing\n", " lists no classes; write one a line$"),
        (
            "n02102040\nn0144076\n",
            "line 2: .*/tree has no class 'n0144076'; did you mean n01440764",
        ),
        ("zebra\n", "line 1: .*/tree has no class 'zebra'; its first is 'n01440764'$"),
        ("n02102040\n\nn02102040\n", "line 3: 'n02102040' is there twice; remove one$"),
    ],
)
def test_chosen_classes_that_are_none(lines: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^cfg.classes: {tmp_path}/classes.txt.*{message}"):
        chosen(tmp_path, lines)


def test_a_list_of_classes_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"^cfg.classes: {tmp_path}/no: cannot be read \(No such file"
    ):
        selection.of_classes(
            image_folder.list_images(made.tree(tmp_path / "tree", TRAIN)), tmp_path / "no"
        )


def test_imagenet_100_is_of_imagenet() -> None:
    lines = (CLASSES / "imagenet100.txt").read_text().splitlines()
    wnids = [line for line in lines if not line.startswith("#")]
    known = Path(os.path.dirname(timm.__file__), "data/_info/imagenet_synsets.txt").read_text()
    assert len(set(wnids)) == len(wnids) == 100
    assert set(wnids) < set(known.split())
    assert wnids == sorted(wnids)


# ---------------------------------------------------------------------------------- the devkit


def test_ids_of_the_devkit_are_not_in_the_order_of_wnids(tmp_path: Path) -> None:
    made.ilsvrc_val(tmp_path, VAL, wnid_of_id=(WNIDS[1], WNIDS[2], WNIDS[0]))
    wnids, truth, words = ilsvrc_tars.read_devkit(tmp_path / ilsvrc_tars.DEVKIT)
    assert wnids == list(WNIDS)  # without the one that has children
    assert words == dict.fromkeys(WNIDS, "a word")
    by_file = {name.split("/")[1]: name.split("/")[0] for name in VAL}
    assert truth == [by_file[file] for file in sorted(by_file)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "not a whole .tar.gz"),
        (lambda data: b"<html>", "not a whole .tar.gz"),
    ],
)
def test_a_devkit_that_is_none(
    damage: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    path = made.ilsvrc_val(tmp_path, VAL) / ilsvrc_tars.DEVKIT
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"^{path}: {message}"):
        ilsvrc_tars.read_devkit(path)


@pytest.mark.parametrize(
    ("meta", "truth", "message"),
    [
        (b"no such format", b"1\n", "not ILSVRC2012's devkit"),
        (None, b"7\n", r"not ILSVRC2012's devkit \(KeyError: 7\)"),
        (b"", b"1\n", "has no data/meta.mat or no ground truth"),
    ],
)
def test_a_devkit_of_something_else(
    meta: bytes | None, truth: bytes, message: str, tmp_path: Path
) -> None:
    path = made.ilsvrc_val(tmp_path, VAL) / ilsvrc_tars.DEVKIT
    with tarfile.open(path) as tar:
        file = tar.extractfile("ILSVRC2012_devkit_t12/data/meta.mat")
        assert file is not None
        whole = file.read()
    with tarfile.open(path, "w:gz") as tar:
        made.add(tar, "d/data/meta.mat", whole if meta is None else meta)
        made.add(tar, "d/data/ILSVRC2012_validation_ground_truth.txt", truth)
    with pytest.raises(UserError, match=message):
        ilsvrc_tars.read_devkit(path)


@pytest.mark.parametrize(
    ("module", "make", "message"),
    [
        ("scipy.io", made.ilsvrc_val, r"needs scipy: pip install 'ffcv_r50\[ilsvrc\]'$"),
        ("pyarrow", made.hub, r"needs pyarrow: pip install 'ffcv_r50\[parquet\]'$"),
    ],
)
def test_an_extra_that_is_not_installed_is_named(
    module: str,
    make: Callable[..., Path],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = make(tmp_path, VAL)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=message):
        selection.source(Writing(data_dir=str(data), write_path="x", split="val"))
