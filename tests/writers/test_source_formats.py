"""Each source against the ImageFolder of the same images, and what is wrong with each."""

import pickle
import re
import shutil
import tarfile
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from torchvision.datasets import ImageFolder

from ffcv_r50.data import beton
from ffcv_r50.errors import UserError
from tests.writers import source_formats as made
from tests.writers.source_formats import TRAIN, VAL, WNIDS, Images
from writers import pool, writing
from writers.config import Writing
from writers.sources import SOURCES, BadImage, arrow, recognised, tar_members

Make = Callable[[Path, Images], Path]
# The name, what makes it, the split, the images, whether names are ImageFolder's (so draws are).
FORMATS: list[tuple[str, Make, str, Images, bool]] = [
    ("ilsvrc_tars", made.ilsvrc_train, "train", TRAIN, True),
    ("ilsvrc_tars", made.ilsvrc_val, "val", VAL, True),
    ("kaggle", made.kaggle_train, "train", TRAIN, True),
    ("kaggle", made.kaggle_val, "val", VAL, True),
    ("tiny_imagenet", made.tiny_train, "train", TRAIN, False),  # n01440764/images/...
    ("tiny_imagenet", made.tiny_val, "val", VAL, True),
    ("flat", made.flat_numbers, "val", VAL, True),
    ("flat", made.flat_names, "val", VAL, True),
    ("manifest", made.manifest_csv, "train", TRAIN, True),
    ("manifest", made.manifest_json, "train", TRAIN, True),
    ("manifest", made.manifest_parquet, "train", TRAIN, True),
    ("manifest", made.manifest_text, "train", TRAIN, True),
    ("parquet", made.hub, "train", TRAIN, False),
    ("parquet", made.plain_parquet, "train", TRAIN, False),
    ("webdataset", made.shards_cls, "train", TRAIN, False),
    ("webdataset", made.shards_json, "train", TRAIN, False),
]
IDS = [f"{name}-{make.__name__}" for name, make, *_ in FORMATS]


def in_this_process(
    function: Callable[..., Any], chunks: Iterable[tuple[Any, ...]], num_workers: int
) -> Generator[Any, None, None]:
    """Stands in for :func:`writers.pool.ordered_map`, and sends what it would send."""
    for chunk in chunks:
        yield function(*pickle.loads(pickle.dumps(chunk)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    return path


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., beton.Beton]:
    def run(data_dir: Path, **settings: Any) -> beton.Beton:
        monkeypatch.setattr(pool, "ordered_map", in_this_process)
        path = tmp_path / "x.beton"
        writing.write(Writing(data_dir=str(data_dir), write_path=str(path), **settings), 1 << 21)
        return beton.Beton(path)

    return run


Write = Callable[..., beton.Beton]


@pytest.mark.parametrize(("name", "make", "split", "content", "same_names"), FORMATS, ids=IDS)
def test_the_bytes_are_those_of_the_image_folder(
    name: str,
    make: Make,
    split: str,
    content: Images,
    same_names: bool,
    folder: Path,
    tmp_path: Path,
    write: Write,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mode = "proportion" if same_names else "jpg"
    reference = write(made.tree(tmp_path / "tree", content), write_mode=mode, split=split)
    expected = reference.path.read_bytes()
    assert reference.labels.tolist() == ImageFolder(str(tmp_path / "tree")).targets
    assert "recognised" not in capsys.readouterr().out
    data_dir = make(folder, content)
    written = write(data_dir, write_mode=mode, split=split)
    assert written.path.read_bytes() == expected
    assert written.sidecar is not None
    assert written.sidecar.classes == list(WNIDS)
    assert written.sidecar.settings["dataset"] == name
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"recognised {data_dir} as --cfg.dataset={name}: ")
    assert f": {len(content)} images of 3 classes" in lines[1]


# ---------------------------------------------------------------------------- one that is damaged


def change(path: Path, old: bytes, new: bytes) -> None:
    """Overwrite what ``path`` holds once with as many other bytes."""
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new.ljust(len(old), b"\0")))


def damaged_hub(folder: Path, content: Images) -> Path:
    rows = [(data, WNIDS.index(name.split("/")[0])) for name, data in content.items()]
    rows[5] = (b"<html>", rows[5][1])
    parquet.write_table(made.hub_table(rows), folder / "train.parquet", row_group_size=3)
    return folder


FIRST = "n02102040/n02102040_2.JPEG"  # in the middle of TRAIN
DAMAGED: list[tuple[Make, str, str | None]] = [  # what makes it, its place, the file to damage
    (made.ilsvrc_train, "ILSVRC2012_img_train.tar/{}", "ILSVRC2012_img_train.tar"),
    (made.kaggle_train, "ILSVRC/Data/CLS-LOC/train/{}", "ILSVRC/Data/CLS-LOC/train/{}"),
    (made.tiny_train, "train/n02102040/images/n02102040_2.JPEG", None),
    (made.manifest_csv, "{}", "{}"),
    (made.shards_cls, "imagenet-train-000000.tar/n02102040_2.jpg", "imagenet-train-000000.tar"),
    (damaged_hub, "train.parquet/5", None),
]


@pytest.mark.parametrize(
    ("make", "place", "file"), DAMAGED, ids=[make.__name__ for make, *_ in DAMAGED]
)
def test_a_damaged_image_is_named_or_skipped(
    make: Make, place: str, file: str | None, folder: Path, tmp_path: Path, write: Write
) -> None:
    # The sixth of all, whatever the order of its class.
    bad = list(TRAIN)[5] if make in (damaged_hub,) else FIRST
    data_dir = make(folder, TRAIN)
    if make is not damaged_hub:
        change(folder / (file or place).format(bad), TRAIN[bad], b"<html>")
    where = folder / place.format(bad)
    with pytest.raises(
        UserError,
        match=f"^{re.escape(str(where))}: not an image that Pillow can read; repair or remove it",
    ):
        write(data_dir)
    assert sorted(tmp_path.iterdir()) == [folder]
    written = write(data_dir, on_error="skip")
    assert written.num_samples == len(TRAIN) - 1
    assert written.sidecar is not None
    (skipped,) = written.sidecar.skipped
    assert skipped["path"].endswith(place.format(bad).rpartition("/")[2])


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (made.ilsvrc_val, "ILSVRC2012_img_val.tar/{}"),
        (made.kaggle_val, "ILSVRC/Data/CLS-LOC/val/{}"),
        (made.tiny_val, "val/images/{}"),
        (made.flat_numbers, "val/{}"),
    ],
)
def test_a_damaged_image_of_val_is_named_as_it_lies_there(
    make: Make, place: str, folder: Path, write: Write
) -> None:
    bad = list(VAL)[4]
    data_dir = make(folder, VAL)
    path = folder / place.format(bad.split("/")[1])
    change(path if path.is_file() else path.parent, VAL[bad], b"<html>")
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: not an image"):
        write(data_dir, split="val")


def test_a_damaged_row_group_costs_its_rows_only(folder: Path, write: Write) -> None:
    rows = [(data, 0) for data in TRAIN.values()]
    path = folder / "train.parquet"
    parquet.write_table(
        made.hub_table(rows), path, row_group_size=4, compression="none", use_dictionary=False
    )
    with parquet.ParquetFile(path) as file:
        at = file.metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[at : at + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path}/4: row group 1 is damaged \(.*\); repair"):
        write(folder)
    written = write(folder, on_error="skip")
    assert written.sidecar is not None
    assert [s["path"] for s in written.sidecar.skipped] == [
        f"train.parquet/{i}" for i in range(4, 8)
    ]


def test_a_row_group_is_read_once_by_who_reads_in_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SOURCES["parquet"]().build(str(made.hub(folder, TRAIN)), "train")
    opened = []
    original = arrow.open_file

    def count(path: Path) -> Any:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(arrow, "open_file", count)
    assert [source.reader(i)() for i in range(12)] == list(TRAIN.values())
    assert len(opened) == 5  # of 5 and 7 rows, three at a time


# ------------------------------------------------------------------ archives that are not whole


def archive(folder: Path) -> tuple[Path, list[tar_members.Member]]:
    path = made.shards_cls(folder, TRAIN) / "imagenet-train-000001.tar"
    return path, list(tar_members.members(path))


def test_members_are_where_tarfile_says(folder: Path) -> None:
    path, found = archive(folder)
    with tarfile.open(path) as tar:
        assert [m.name for m in found] == tar.getnames()
        for member in found:
            file = tar.extractfile(member.name)
            assert file is not None
            assert tar_members.read_range(str(path), member.offset, member.size) == file.read()


@pytest.mark.parametrize("nested", [False, True])
def test_an_archive_that_is_cut_anywhere_is_refused(nested: bool, folder: Path) -> None:
    if nested:
        path = made.ilsvrc_train(folder, TRAIN) / "ILSVRC2012_img_train.tar"
        name = "ilsvrc_tars"
    else:
        path, name = archive(folder)[0], "webdataset"
    whole = path.read_bytes()
    ends = len(whole.rstrip(b"\0"))
    cuts = {*range(0, ends, 1301), *range(0, ends, 512 * 5), ends - 1, (ends + 511) // 512 * 512}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="download it again"):
            SOURCES[name]().build(str(folder), "train")


def test_an_archive_in_an_archive_ends_where_that_says(folder: Path) -> None:
    """One without an end mark does not go on into its neighbour, which is an archive, not an image."""
    path = made.ilsvrc_train(folder, TRAIN) / "ILSVRC2012_img_train.tar"
    with tarfile.open(path) as outer:
        parts = {}
        for name in outer.getnames():
            file = outer.extractfile(name)
            assert file is not None
            parts[name] = file.read()
    first = next(iter(parts))
    ends = len(parts[first].rstrip(b"\0"))
    parts[first] = parts[first][: (ends + 511) // 512 * 512]
    with tarfile.open(path, "w") as outer:
        for name, data in parts.items():
            made.add(outer, name, data)
    with pytest.raises(UserError, match=f"{path}/{first}: ends inside .*: truncated or damaged"):
        SOURCES["ilsvrc_tars"]().build(str(folder), "train")


def test_a_header_that_is_overwritten_does_not_end_an_archive(folder: Path) -> None:
    path, found = archive(folder)
    content = bytearray(path.read_bytes())
    content[found[4].offset - 512 : found[4].offset] = b"x" * 512
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"has no end mark at byte {found[4].offset - 512:,}: tru"):
        SOURCES["webdataset"]().build(str(folder), "train")


def test_a_negative_size_is_refused(folder: Path) -> None:
    member = tarfile.TarInfo("x.jpg")
    member.size = -1024
    (folder / "a.tar").write_bytes(bytes(member.tobuf(tarfile.GNU_FORMAT)) + bytes(1024))
    with pytest.raises(UserError, match=r"a.tar: ends inside x.jpg: truncated or damaged"):
        SOURCES["webdataset"]().build(str(folder), "train")


def test_a_compressed_archive_is_refused(folder: Path) -> None:
    with tarfile.open(folder / "a.tar", "w:gz") as tar:
        made.add(tar, "x.jpg", b"")
    with pytest.raises(UserError, match=r"a.tar: is compressed, so .*; decompress it$"):
        SOURCES["webdataset"]().build(str(folder), "train")


def test_an_archive_that_becomes_shorter_is_noticed(folder: Path, write: Write) -> None:
    path, _ = archive(folder)
    source = SOURCES["webdataset"]().build(str(path), "train")
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(BadImage, match="has become shorter"):
        source.reader(4)()


def test_a_parquet_file_that_is_cut_is_refused(folder: Path) -> None:
    path = made.hub(folder, TRAIN) / "data" / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        UserError, match=rf"^{path}: not a whole Parquet file \(.*\); download it ag"
    ):
        SOURCES["parquet"]().build(str(folder), "train")


# -------------------------------------------------------------- what a listing alone tells is wrong


def edited(
    make: Make, content: Images, file: str, edit: Callable[[str], str]
) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        make(folder, content)
        (folder / file).write_text(edit((folder / file).read_text()))

    return apply


def without(make: Make, content: Images, file: str) -> Callable[[Path], None]:
    return lambda folder: (make(folder, content) / file).unlink()


def sample(folder: Path, *files: tuple[str, bytes]) -> None:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name, data in files:
            made.add(tar, name, data)


def floats(folder: Path) -> None:
    table = pyarrow.table({"image": [b"", b""], "label": [1.0, 2.5]})
    parquet.write_table(table, folder / "train.parquet")


def hub_of(*labels: int | None) -> Callable[[Path], None]:
    return lambda folder: parquet.write_table(
        made.hub_table([(b"", label) for label in labels]), folder / "train.parquet"
    )


def twice(folder: Path) -> None:
    made.ilsvrc_val(folder, VAL)
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for name in [*VAL, next(iter(VAL))]:
            made.add(tar, name.split("/")[1], b"")


def fewer(folder: Path) -> None:
    made.ilsvrc_val(folder, VAL)
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for name in list(VAL)[:8]:
            made.add(tar, name.split("/")[1], b"")


WRONG: list[tuple[str, str, Callable[[Path], Any], str]] = [
    ("ilsvrc_tars", "val", without(made.ilsvrc_val, VAL, "ILSVRC2012_devkit_t12.tar.gz"),
     "ILSVRC2012_devkit_t12.tar.gz: is not there; it says the labels of the validation images"),
    ("ilsvrc_tars", "val", twice, "img_val.tar: holds ILSVRC2012_val_.* twice"),
    ("ilsvrc_tars", "val", fewer, "2 of the 10 images that .*t12.tar.gz labels are not there, the first is ILSVRC2012_val_0000000"),
    ("ilsvrc_tars", "train", lambda f: made.ilsvrc_val(f, VAL), "there is no file .*img_train.tar; check the path"),
    ("kaggle", "val", without(made.kaggle_val, VAL, "LOC_val_solution.csv"), "LOC_val_solution.csv: cannot be read"),
    ("kaggle", "val", edited(made.kaggle_val, VAL, "LOC_val_solution.csv", lambda t: t.rpartition("ILS")[0]),
     "CLS-LOC/val: 1 of 10 images have no label in .*csv, the first is ILSVRC2012_val_"),
    ("kaggle", "val", edited(made.kaggle_val, VAL, "LOC_val_solution.csv", lambda t: t.replace(",n", ",,n", 1)),
     "LOC_val_solution.csv, line 2: is not 'image,wnid box'"),
    ("kaggle", "val", without(made.kaggle_val, VAL, "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000003.JPEG"),
     "1 of the 10 images that .* labels are not there, the first is ILSVRC2012_val_00000003.JPEG"),
    ("tiny_imagenet", "val", edited(made.tiny_val, VAL, "val/val_annotations.txt", lambda t: t.replace("\tn", "\tm", 1)),
     "val_annotations.txt, line 1: m03000684 is not in wnids.txt"),
    ("flat", "val", edited(made.flat_numbers, VAL, "val.txt", lambda t: t.replace(" 2\n", " 3\n", 1)),
     "val.txt, row 1: label 3 is out of range; there are 3 classes"),
    ("flat", "val", edited(made.flat_numbers, VAL, "val.txt", lambda t: t + t.splitlines()[2]),
     "val.txt, row 11: ILSVRC2012_val_.* is there already, in row 3"),
    ("flat", "val", without(made.flat_numbers, VAL, "val.txt"), "val: needs one table of its labels, found none; expected val.txt"),
    ("manifest", "train", lambda f: made.csv_table(f / "m.csv", [("a", "1"), ("b", "0"), ("a", "1")]),
     "m.csv, row 3: a is there already, in row 1; remove one"),
    ("manifest", "train", lambda f: made.csv_table(f / "m.csv", [("a", "1"), ("b", "")]), "m.csv, row 2: has no label for b"),
    ("manifest", "train", lambda f: made.csv_table(f / "m.csv", [("a", "1"), ("b", "-1")]), "m.csv, row 2: label -1 is out of range"),
    ("manifest", "train", lambda f: (f / "m.csv").write_text("file,label\nx,1\n"), "m.csv, row 1: the header has the columns file, label; call two"),
    ("manifest", "train", lambda f: (f / "m.jsonl").write_text('{"path": "x", "label": 1}\n{"path": "y", "label": 1.5}'), "m.jsonl, row 2: has no label for y"),
    ("manifest", "train", lambda f: (f / "m.jsonl").write_text('{"path": "x", "label": 1}\n{"path": '), "m.jsonl, row 2: Expecting value"),
    ("manifest", "train", lambda f: (f / "m.txt").write_text("x 1\ny\n"), "m.txt, row 2: has no path"),
    ("manifest", "train", lambda f: (f / "m.csv").write_text("path,label\nx\0,1\n"), "m.csv, row 1: has no path|line contains NUL"),
    ("manifest", "train", lambda f: (f / "m.jsonl").write_text('{"path": "\\ud800", "label": 1}'), "m.jsonl, row 1: .*surrogates not allowed"),
    ("manifest", "train", lambda f: (f / "m.csv").write_text("path,label\n"), "m.csv: has no rows"),
    ("parquet", "train", hub_of(0, 3), "train.parquet/1: label 3 is out of range; there are 3 classes"),
    ("parquet", "train", hub_of(0, -1), "train.parquet/1: label -1 is out of range"),
    ("parquet", "train", floats, "train.parquet/0: label 1.0 is neither a number from 0 nor a class"),
    ("parquet", "train", hub_of(0, None), "train.parquet/1: has no label"),
    ("parquet", "val", hub_of(0), "holds no .parquet files of the split 'val', but train.parquet"),
    ("parquet", "train", without(made.hub, TRAIN, "data/train-00000-of-00002.parquet"), "1 of 2 shards are missing, the first is train-00000-of-00002;"),
    ("parquet", "train", lambda f: made.manifest_parquet(f, TRAIN), "expected one column of images and one of labels, it has path, label"),
    ("webdataset", "train", lambda f: sample(f, ("x.jpg", b"")), "a.tar/x: has no label, only jpg; expected x.cls"),
    ("webdataset", "train", lambda f: sample(f, ("x.cls", b"1")), r"a.tar/x: has 0 images \(cls\), not one"),
    ("webdataset", "train", lambda f: sample(f, ("x.jpg", b""), ("x.png", b""), ("x.cls", b"1")), r"a.tar/x: has 2 images"),
    ("webdataset", "train", lambda f: sample(f, ("x.jpg", b""), ("x.jpg", b""), ("x.cls", b"1")), r"a.tar/x.jpg: is there twice"),
    ("webdataset", "train", lambda f: sample(f, ("x.jpg", b""), ("x.cls", b"1"), ("y.jpg", b""), ("y.cls", b"1"), ("x.jpg", b"")), r"a.tar/x: is there twice"),
    ("webdataset", "train", lambda f: sample(f, ("x.jpg", b""), ("x.cls", b"-2")), r"a.tar/x.jpg: label -2 is out of range"),
    ("webdataset", "train", lambda f: sample(f, ("x.jpg", b""), ("x.cls", b"\xff")), r"a.tar/x.cls: is no label"),
    ("webdataset", "train", lambda f: sample(f, ("x.jpg", b""), ("x.json", b'{"label": [1]}')), r"a.tar/x.json: is no label"),
    ("webdataset", "train", lambda f: sample(f), r"a.tar: holds no samples"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "split", "make", "message"), WRONG, ids=[f"{n}-{m[:25]}" for n, *_, m in WRONG]
)
def test_what_is_wrong_with_a_listing_is_said_before_writing(
    name: str, split: str, make: Callable[[Path], Any], message: str, folder: Path, tmp_path: Path
) -> None:
    make(folder)
    tables = [path for path in folder.iterdir() if path.stem == "m"]
    with pytest.raises(UserError, match=message) as caught:
        writing.write(
            Writing(
                dataset=name,
                split=split,  # type: ignore[arg-type]
                data_dir=str(tables[0] if name == "manifest" else folder),
                write_path=str(tmp_path / "x.beton"),
            )
        )
    assert str(caught.value).startswith(
        (str(folder), f"cfg.data_dir: {folder}", "cfg.data_dir: there")
    )
    assert sorted(tmp_path.iterdir()) == [folder]


# --------------------------------------------------------------------------------- recognition


@pytest.mark.parametrize("split", ["train", "val"])
def test_what_was_read_as_a_folder_of_classes_still_is(
    split: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "val"):
        made.tree(folder / part, TRAIN)
        for name in ("a.tar", "a.parquet", "labels.csv", f"{part}.txt"):
            (folder / part / name).touch()
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "a.tar", "val.txt"):
        (folder / name).touch()
    assert recognised(str(folder), split) == "imagenet"
    assert recognised(str(folder / split), split) == "imagenet"
    assert recognised(str(folder / "nowhere"), split) == "imagenet"
    assert capsys.readouterr().out == ""


def test_tiny_imagenet_with_sorted_validation_images_is_a_folder_of_classes(folder: Path) -> None:
    made.tiny_val(folder, VAL)
    assert recognised(str(folder), "val") == "tiny_imagenet"
    shutil.rmtree(folder / "val" / "images")
    made.tree(folder / "val", VAL)
    assert recognised(str(folder), "val") == "imagenet"


def test_what_workers_are_sent_does_not_grow_with_the_dataset(folder: Path) -> None:
    for i, (name, make, split, content, _) in enumerate(FORMATS):
        place = folder / str(i)
        place.mkdir()
        source = SOURCES[name]().build(str(make(place, content)), split)
        assert len(pickle.dumps(source.reader(0))) < 200 + len(str(folder)), make
