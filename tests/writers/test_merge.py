"""Parts of one dataset, and datasets of others, joined."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ffcv.reader
import numpy as np
import pytest
from ffcv.fields import BytesField, IntField, JSONField, RGBImageField
from ffcv.fields.json import JSONField as _JSON
from ffcv.writer import DatasetWriter
from PIL import Image

from ffcv_r50.data import beton, samples
from ffcv_r50.errors import RunFault, UserError
from tests.writers.serial import in_this_process
from writers import merge, partial, pool, writing
from writers.config import Writing

IMAGES = 84
"""So many that the metadata of the 81 that can be read would leave a page less before the first sample."""
PAGE = 1 << 12


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of many sizes in three classes, three images that cannot be read."""
    root = tmp_path_factory.mktemp("tree")
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        path = root / "abc"[i // 28] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        shape = (int(rng.integers(4, 30)), int(rng.integers(4, 30)), 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    for damaged in ("a/00.png", "b/37.png", "c/83.png"):
        (root / damaged).write_bytes(b"")
    return root


Write = Callable[..., Path]


@pytest.fixture
def write(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write the tree under a name, with settings."""
    monkeypatch.setattr(pool, "ordered_map", in_this_process)

    def run(name: str, page_size: int = PAGE, **settings: Any) -> Path:
        path = tmp_path / name
        defaults = {"write_mode": "proportion", "on_error": "skip"}
        writing.write(
            Writing(**{"data_dir": str(tree), "write_path": str(path), **defaults, **settings}),
            page_size,
        )
        return path

    return run


def files(path: Path) -> list[bytes]:
    """The dataset, its sidecar and its samples file."""
    return [p.read_bytes() for p in (path, beton.sidecar_path(path), samples.path_beside(path))]


@pytest.mark.parametrize("more", [{}, {"shuffle": True}, {"shuffle": True, "index_field": True}])
def test_sixteen_parts_are_one_write(
    more: dict[str, Any], write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = files(write("x.beton", **more))
    parts = [write(f"{i}.beton", **more, shard=f"{i}/16") for i in range(1, 17)]
    counts = [beton.Beton(part).num_samples for part in parts]
    assert sum(counts) == IMAGES - 3
    assert set(counts) <= {3, 4, 5, 6}
    random.Random(0).shuffle(parts)
    capsys.readouterr()
    merge.main([str(tmp_path / "x.beton"), *map(str, parts)])
    assert files(tmp_path / "x.beton") == whole
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path / 'x.beton'}: 81 samples of 16")
    assert not list(tmp_path.glob(".*"))


def test_a_part_of_a_version_without_the_setting(write: Write, tmp_path: Path) -> None:
    parts = [write(f"{i}.beton", shard=f"{i}/2") for i in (1, 2)]
    sidecar = beton.sidecar_path(parts[1])
    content = json.loads(sidecar.read_bytes())
    del content["settings"]["index_field"]
    sidecar.write_text(json.dumps(content))
    merge.main([str(tmp_path / "x.beton"), *map(str, parts)])
    assert beton.Beton(tmp_path / "x.beton").num_samples == IMAGES - 3


def test_the_order_mixes_classes(write: Write) -> None:
    sorted_ = beton.Beton(write("sorted.beton"))
    path = write("x.beton", shuffle=True)
    shuffled = beton.Beton(path)
    assert (np.diff(sorted_.labels) < 0).sum() == 0
    # Of 80 neighbours in a random order two thirds have different classes.
    assert (np.diff(shuffled.labels) != 0).sum() == pytest.approx(53, abs=13)
    names = [line.name for line in samples.read(path, 81) or ()]
    assert names != sorted(names)
    assert sorted(names) == [line.name for line in samples.read(sorted_.path, 81) or ()]
    assert [int("abc".index(name[0])) for name in names] == shuffled.labels.tolist()
    first = path.read_bytes()
    assert write("x.beton", shuffle=True).read_bytes() == first
    assert write("x.beton", shuffle=True, seed=1).read_bytes() != first


def test_datasets_one_behind_the_other(write: Write, tmp_path: Path) -> None:
    """Of other settings and page sizes."""
    one = beton.Beton(write("1.beton", write_mode="raw"))
    two = beton.Beton(write("2.beton", 2 * PAGE, write_mode="jpg", subset=50))
    output = tmp_path / "x.beton"
    merge.main([str(output), str(one.path), str(two.path)])
    joined = beton.Beton(output)
    both = [(d, i) for d in (one, two) for i in range(d.num_samples)]
    assert joined.num_samples == len(both)
    assert joined.page_size == 2 * PAGE
    for i, (dataset, j) in enumerate(both):
        assert joined.read(i) == dataset.read(j)
        for name in ("labels", "modes", "heights", "widths"):
            assert getattr(joined, name)[i] == getattr(dataset, name)[j]
    assert joined.sidecar
    assert one.sidecar
    assert two.sidecar
    assert joined.sidecar.class_counts == np.bincount(joined.labels).tolist()
    assert joined.sidecar.skipped == one.sidecar.skipped + two.sidecar.skipped
    assert joined.sidecar.settings["jpeg_quality"] == 90
    assert joined.sidecar.settings["write_path"] == str(output)
    assert "write_mode" not in joined.sidecar.settings
    assert joined.sidecar.content == joined.identity.content
    lines = [*(samples.read(output, len(both)) or ())]
    assert lines == [line for d in (one, two) for line in samples.read(d.path, d.num_samples) or ()]


class Odd:
    """Samples with fields of other people."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.samples = [
            (
                rng.integers(0, 256, (int(rng.integers(3, 20)), 9, 3), dtype=np.uint8),
                rng.integers(0, 256, int(rng.integers(1, 90)), dtype=np.uint8),
                int(rng.integers(0, 5)),
                {"text": "x" * int(rng.integers(1, 50))},
            )
            for _ in range(12)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        return self.samples[i]


@pytest.mark.slow
def test_fields_of_other_people(tmp_path: Path) -> None:
    """Bytes and JSON too, which lie in the pages beside the images; read back by FFCV itself."""
    datasets = [Odd(0), Odd(1)]
    for i, dataset in enumerate(datasets):
        fields = {
            "image": RGBImageField(write_mode="raw"),
            "notes": BytesField(),
            "label": IntField(),
            "extra": JSONField(),
        }
        writer = DatasetWriter(
            str(tmp_path / f"{i}.beton"), fields, page_size=1 << 21, num_workers=1
        )
        writer.from_indexed_dataset(dataset)
    merge.main([str(tmp_path / n) for n in ("x.beton", "0.beton", "1.beton")])
    assert not beton.sidecar_path(tmp_path / "x.beton").exists()
    assert not samples.path_beside(tmp_path / "x.beton").exists()
    joined = beton.Beton(tmp_path / "x.beton")
    stock = ffcv.reader.Reader(str(tmp_path / "x.beton"))
    assert stock.field_names == ["image", "notes", "label", "extra"]
    content = joined.path.read_bytes()
    sizes = {int(row["ptr"]): int(row["size"]) for row in stock.alloc_table}
    for i, (image, notes, label, extra) in enumerate(datasets[0].samples + datasets[1].samples):
        assert joined.read(i) == image.tobytes()
        assert joined.labels[i] == label
        for field, expected in ((1, notes.tobytes()), (3, None)):
            begin = int(stock.metadata[f"f{field}"]["ptr"][i])
            data = content[begin : begin + sizes[begin]]
            if expected is None:
                assert _JSON.unpack(np.frombuffer(data, np.uint8)[None]) == [extra]
            else:
                assert data == expected


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["1of3", "3of3"], "command line: part 2/3 is missing, and 0 others; name all parts"),
        (["1of3"], "command line: part 2/3 is missing, and 1 others"),
        (
            ["1of3", "2of3", "3of3", "whole"],
            "parts of different datasets, or parts and other files",
        ),
        (["1of3", "1of2", "2of2"], "parts of different datasets"),
        (["1of3", "2of3", "again"], "again.beton: is part 1/3, as is .*1of3.beton; leave one out"),
        (["1of3", "2of3", "seed"], "seed.beton: was written with seed=1, .*1of3.beton with 0"),
        (["whole", "whole"], "whole.beton: is named twice"),
        (["whole", "two"], "two.beton: has other class names than .*whole.beton"),
        (["whole", "gone"], "gone.beton: cannot be read"),
        (
            ["whole", "index"],
            r"index.beton: has the fields image \(RGB image\), label \(int\), index \(int\), .*whole.beton "
            r"has image \(RGB image\), label \(int\); only files with the same fields can be joined",
        ),
        (
            ["1of3", "2of3", "index3"],
            "index3.beton: was written with index_field=True, .* with False",
        ),
        (["whole", "x"], "output: .*x.beton is one of the files to join"),
        ([], "command line: write: python -m writers.merge OUT IN"),
        (["whole", "--force"], "command line: --force: "),
    ],
)
def test_what_does_not_belong_together_is_refused(
    inputs: list[str], message: str, write: Write, tree: Path, tmp_path: Path
) -> None:
    two = tmp_path / "two"
    two.mkdir()
    for name in "ab":
        shutil.copytree(tree / name, two / name)
    settings: dict[str, dict[str, Any]] = {
        "whole": {},
        "x": {},
        "again": {"shard": "1/3"},
        "seed": {"shard": "3/3", "seed": 1},
        "two": {"data_dir": str(two)},
        "index": {"index_field": True},
        "index3": {"shard": "3/3", "index_field": True},
    }
    for name in inputs:
        if "of" in name:
            settings[name] = {"shard": name.replace("of", "/")}
        if name in settings:
            write(f"{name}.beton", **settings[name])
    words = [n if n.startswith("--") else str(tmp_path / f"{n}.beton") for n in ["x", *inputs]]
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=message):
        merge.main(words)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_labels_beyond_the_classes_are_refused(write: Write, tmp_path: Path) -> None:
    one, two = write("1.beton"), write("2.beton")
    beton.sidecar_path(two).unlink()
    with open(two, "r+b") as file:
        fields = beton.HEADER.itemsize + 2 * beton.FIELD.itemsize
        file.seek(fields + 16)
        file.write(b"\x03")
    with pytest.raises(UserError, match=r"2.beton: has a label 3, .*1.beton has 3 classes"):
        merge.main([str(tmp_path / "x.beton"), str(one), str(two)])


@pytest.mark.parametrize("place", ["pages", "label", "samples"])
def test_damage_is_not_copied(place: str, write: Write, tmp_path: Path) -> None:
    one, two = write("1.beton", write_mode="raw"), write("2.beton", write_mode="raw")
    dataset = beton.Beton(two)
    content = bytearray(two.read_bytes())
    message = r"2.beton: sample 40 \(b/42.png\) is not what was written"
    if place == "pages":
        content[int(dataset.offsets[40]) + 3] ^= 1
    elif place == "label":
        content[beton.HEADER.itemsize + 2 * beton.FIELD.itemsize + 16] ^= 1
        message = "2.beton: its header, metadata or table are not what was written"
    else:
        lines = [*(samples.read(two, 81) or ())]
        samples.path_beside(two).write_bytes(samples.pack(lines + lines[:1]))
        message = "2.beton.samples.gz: describes more than 81 samples, the dataset has 81"
    two.write_bytes(content)
    with pytest.raises(UserError, match=message):
        merge.main([str(tmp_path / "x.beton"), str(one), str(two)])
    assert not (tmp_path / "x.beton").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_file_without_names_leaves_the_merged_one_without(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = write("1.beton"), write("2.beton")
    samples.path_beside(one).unlink()
    merge.main([str(tmp_path / "x.beton"), str(one), str(two)])
    assert "note: " in capsys.readouterr().out
    assert not samples.path_beside(tmp_path / "x.beton").exists()
    assert beton.Beton(tmp_path / "x.beton").num_samples == 162


def test_a_full_disk_is_one_line(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write("1.beton")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(partial.Partial, "finish", full)
    with pytest.raises(
        RunFault, match=r"x.beton failed: No space left on device; it is as it was$"
    ):
        merge.main([str(tmp_path / "x.beton"), str(one)])
    assert not list(tmp_path.glob("*x.beton*"))


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "1/", "a/b", "-1/3", "1/0", "1/3/5"])
def test_a_part_that_is_none_is_refused(shard: str, write: Write) -> None:
    with pytest.raises(UserError, match=f"cfg.shard: '{shard}' is no part; write 1/16 to 16/16"):
        write("x.beton", shard=shard)


def test_more_parts_than_images_are_refused(write: Write) -> None:
    with pytest.raises(UserError, match=r"cfg.shard: 84 images cannot be shared among 85 parts"):
        write("x.beton", shard="1/85")


@pytest.mark.parametrize("change", [{"settings": []}, {"skipped": 5}, {"versions": "x"}])
def test_a_sidecar_that_somebody_made_up_is_refused(
    change: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    path = write("1.beton")
    sidecar = beton.sidecar_path(path)
    sidecar.write_text(json.dumps(json.loads(sidecar.read_bytes()) | change))
    with pytest.raises(UserError, match=r"1\.beton\.json: not a readable sidecar"):
        merge.main([str(tmp_path / "x.beton"), str(path)])


def test_what_a_killed_writer_left_is_not_joined(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sidecar was whole, and what is joined has none."""
    one = write("1.beton")

    def killed(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(partial.Partial, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            write("x.beton")
    assert (tmp_path / ".x.beton.json.partial").exists()
    for beside in (beton.sidecar_path(one), samples.path_beside(one)):
        beside.unlink()
    merge.main([str(tmp_path / "x.beton"), str(one)])
    assert {path.name for path in tmp_path.iterdir()} == {"1.beton", "x.beton"}
