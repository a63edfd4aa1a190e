"""Whole files, written by worker processes."""

import io
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ffcv.reader
import numpy as np
import numpy.typing as npt
import pytest
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from PIL import Image
from torchvision.datasets import ImageFolder

import ffcv_r50.files
from ffcv_r50.data import beton
from ffcv_r50.errors import UserError
from tests.writers.serial import in_this_process
from writers import pool, selection, writing
from writers.config import Writing

HEIGHT, WIDTH = 48, 64
CLASSES = ("ant", "bee", "cat")
IMAGES = 30

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty smooth PNGs of one size in three classes."""
    root = tmp_path_factory.mktemp("tree")
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        path = root / CLASSES[i % 3] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(path)
    return root


@pytest.fixture
def write(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Write":
    """Write ``tree`` with some settings and open the file; in processes if their number is given."""

    def run(page_size: int = 1 << 21, **settings: Any) -> beton.Beton:
        path = tmp_path / "x.beton"
        defaults: dict[str, Any] = {"data_dir": str(tree), "write_path": str(path)}
        with monkeypatch.context() as patch:
            if "num_workers" not in settings:
                patch.setattr(pool, "ordered_map", in_this_process)
            writing.write(Writing(**defaults | settings), page_size)
        return beton.Beton(path)

    return run


Write = Callable[..., beton.Beton]


def pixels(dataset: beton.Beton, i: int) -> Pixels:
    stored = dataset.read(i)
    if dataset.modes[i] == beton.MODE_RAW:
        return np.frombuffer(stored, np.uint8).reshape(dataset.heights[i], dataset.widths[i], 3)
    with Image.open(io.BytesIO(stored)) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        return np.asarray(image)


# ------------------------------------------------------------------------------------ round trip


def check_samples(dataset: beton.Beton, tree: Path) -> None:
    """Raw pixels exactly, JPEGs within their error, labels and names exactly."""
    reference = ImageFolder(str(tree))
    assert dataset.labels.tolist() == reference.targets
    for i, (image, _) in enumerate(reference):
        original = np.asarray(image)
        ours = pixels(dataset, i)
        if dataset.modes[i] == beton.MODE_RAW:
            np.testing.assert_array_equal(ours, original)
        else:
            # Quality 90 quantises with steps of up to 24, on average 15; an error uniform within
            # them has a mean square of 15^2 / 12, which is 35 dB, and smooth images have mostly
            # zeros that cost nothing. A wrong image, or swapped channels, is below 15 dB.
            error = np.mean((ours.astype(float) - original) ** 2)
            assert 10 * np.log10(255**2 / error) > 35


def test_round_trip(write: Write, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write(write_mode="proportion", num_workers=2, seed=5)
    check_samples(dataset, tree)
    names = sorted(str(path.relative_to(tree)) for path in tree.glob("*/*"))
    expected = [selection.draw(5, "compress", name) >= 0.5 for name in names]
    assert (dataset.modes == beton.MODE_RAW).tolist() == expected
    assert 5 < sum(expected) < 25
    sidecar = dataset.sidecar
    assert sidecar is not None
    assert sidecar.classes == list(CLASSES)
    assert sidecar.class_counts == [10, 10, 10]
    assert sidecar.source == str(tree)
    assert sidecar.skipped == []
    assert sidecar.settings["seed"] == 5
    assert set(sidecar.settings) == set(Writing.model_fields)
    assert sidecar.versions["pillow"]
    raw = sum(expected)
    size = dataset.path.stat().st_size / 1e6
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tree}: 30 images of 3 classes"
    assert lines[-1].startswith(
        f"wrote {dataset.path}: 30 images of 3 classes ({raw} raw, {30 - raw} JPEG), {size:.1f} MB, "
        "0 skipped, "
    )


def test_stock_ffcv_loads_the_same_pixels(write: Write) -> None:
    dataset = write(write_mode="proportion")
    loader = Loader(
        str(dataset.path),
        batch_size=IMAGES,
        num_workers=1,
        os_cache=True,
        order=OrderOption.SEQUENTIAL,
        pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]},
    )
    (batch,) = iter(loader)
    assert batch[1].ravel().tolist() == dataset.labels.tolist()
    for i in range(IMAGES):
        # Stock decodes with the fast IDCT: a few units off for JPEGs, exact for raw pixels.
        limit = 0 if dataset.modes[i] == beton.MODE_RAW else 6
        assert np.abs(batch[0][i].astype(int) - pixels(dataset, i)).max() <= limit


def test_the_index_is_a_field_if_asked(write: Write, tree: Path, tmp_path: Path) -> None:
    """Read by FFCV; of shuffled images of some classes, one of them left out, it is ImageFolder's."""
    damaged = tmp_path / "damaged"
    shutil.copytree(tree, damaged)
    (damaged / "cat" / "05.png").write_bytes(b"")
    (tmp_path / "classes.txt").write_text("cat\nbee\n")
    settings: dict[str, Any] = {
        "data_dir": str(damaged),
        "classes": str(tmp_path / "classes.txt"),
        "shuffle": True,
        "on_error": "skip",
        "write_mode": "raw",
    }
    dataset = write(**settings, index_field=True)
    loader = Loader(
        str(dataset.path),
        batch_size=19,
        num_workers=1,
        os_cache=True,
        order=OrderOption.SEQUENTIAL,
        pipelines={
            "image": [SimpleRGBImageDecoder()],
            "label": [IntDecoder()],
            "index": [IntDecoder()],
        },
    )
    ((loaded, labels, index),) = iter(loader)
    assert labels.ravel().tolist() == dataset.labels.tolist()
    reference = ImageFolder(str(tree))
    for i, at in enumerate(index.ravel().tolist()):
        image, label = reference[at]
        assert CLASSES[label] == ("cat", "bee")[dataset.labels[i]]
        np.testing.assert_array_equal(loaded[i], np.asarray(image))
        np.testing.assert_array_equal(pixels(dataset, i), np.asarray(image))
    assert index.ravel().tolist() != sorted(index.ravel().tolist())
    # But for it, the file is that of a writer who was not asked.
    plain = write(**settings)
    assert [plain.read(i) for i in range(19)] == [dataset.read(i) for i in range(19)]
    assert ffcv.reader.Reader(str(plain.path)).field_names == ["image", "label"]


@pytest.mark.slow
def test_the_file_does_not_depend_on_workers_and_chunks(write: Write) -> None:
    written = []
    for workers, chunk in ((1, 4), (2, 3), (3, 100)):
        dataset = write(write_mode="proportion", num_workers=workers, chunk_size=chunk)
        written.append(dataset.path.read_bytes())
    assert written[0] == written[1] == written[2]
    assert written[0] != write(write_mode="proportion", seed=1).path.read_bytes()


@pytest.mark.parametrize(
    ("settings", "raw"),
    [
        ({"write_mode": "raw"}, 30),
        ({"write_mode": "jpg"}, 0),
        ({"write_mode": "proportion", "compress_probability": 0.0}, 30),
        ({"write_mode": "proportion", "compress_probability": 1.0}, 0),
        ({"write_mode": "smart", "smart_threshold": 1e9}, 30),
        ({"write_mode": "smart", "smart_threshold": 0.0}, 0),
    ],
)
def test_write_modes(write: Write, tree: Path, settings: dict[str, Any], raw: int) -> None:
    dataset = write(**settings)
    check_samples(dataset, tree)
    assert (dataset.modes == beton.MODE_RAW).sum() == raw


def test_sizes_and_quality(write: Write) -> None:
    dataset = write(max_resolution=32, jpeg_quality=60)
    assert set(zip(dataset.heights.tolist(), dataset.widths.tolist(), strict=True)) == {(24, 32)}
    assert pixels(dataset, 0).shape == (24, 32, 3)
    finer = write(max_resolution=32, jpeg_quality=95)
    assert finer.sizes.sum() > 1.2 * dataset.sizes.sum()


def test_a_subset_keeps_labels_and_classes(
    write: Write, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write(write_mode="raw")
    images = {pixels(whole, i).tobytes(): int(whole.labels[i]) for i in range(IMAGES)}
    part = write(write_mode="raw", subset=7)
    assert part.num_samples == 7
    found = [pixels(part, i).tobytes() for i in range(7)]
    assert [images[image] for image in found] == part.labels.tolist()
    assert part.sidecar is not None
    assert part.sidecar.classes == list(CLASSES)
    assert part.sidecar.class_counts == np.bincount(part.labels, minlength=3).tolist()
    assert (
        f"taking 7 of them, of {len(set(part.labels.tolist()))} classes" in capsys.readouterr().out
    )


def test_exif_rotation(write: Write, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "tree" / "c").mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(tmp_path / "tree" / "c" / "x.jpg", exif=exif)
    for turn, size in ((False, (10, 20)), (True, (20, 10))):
        dataset = write(data_dir=str(tmp_path / "tree"), exif_rotate=turn)
        assert (dataset.heights[0], dataset.widths[0]) == size


# ------------------------------------------------------------------------------------- bad images


@pytest.fixture
def damaged(tree: Path, tmp_path: Path) -> Path:
    """The tree with two images that cannot be read."""
    copy = tmp_path / "damaged"
    shutil.copytree(tree, copy)
    (copy / "ant" / "00.png").write_bytes(b"")
    (copy / "bee" / "13.png").write_text("<html>")
    return copy


def test_a_bad_image_stops_the_writing(write: Write, damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=rf"^{damaged}/ant/00.png: empty file; repair or remove it, or leave out such images with "
        r"--cfg.on_error=skip$",
    ):
        write(data_dir=str(damaged))
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_bad_images_are_left_out_and_listed(write: Write, damaged: Path, tree: Path) -> None:
    dataset = write(data_dir=str(damaged), on_error="skip", write_mode="proportion")
    assert dataset.num_samples == 28
    assert dataset.sidecar is not None
    assert dataset.sidecar.skipped == [
        {"path": "ant/00.png", "reason": "empty file"},
        {"path": "bee/13.png", "reason": "not an image that Pillow can read"},
    ]
    assert dataset.sidecar.class_counts == [9, 9, 10]
    # The others are stored as if nothing had happened: same order, same choice of raw.
    kept_modes = dataset.modes.tolist()
    kept = [pixels(dataset, i).tobytes() for i in range(28)]
    whole = write(write_mode="proportion")
    rest = [i for i in range(IMAGES) if i not in (0, 14)]  # bee's fifth
    assert kept_modes == whole.modes[rest].tolist()
    assert kept == [pixels(whole, i).tobytes() for i in rest]


def test_nothing_but_bad_images(write: Write, tmp_path: Path) -> None:
    (tmp_path / "tree" / "c").mkdir(parents=True)
    (tmp_path / "tree" / "c" / "x.jpg").touch()
    with pytest.raises(
        UserError, match=r"none of its 1 images can be stored, the first is c/x.jpg: empty file$"
    ):
        write(data_dir=str(tmp_path / "tree"), on_error="skip")
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_an_image_that_no_page_holds_is_named(write: Write, tmp_path: Path) -> None:
    (tmp_path / "tree" / "c").mkdir(parents=True)
    Image.new("RGB", (1000, 700)).save(tmp_path / "tree" / "c" / "wide.png")
    settings = {"data_dir": str(tmp_path / "tree"), "write_mode": "raw"}
    with pytest.raises(
        UserError,
        match=r"c/wide.png: its 2,100,000 bytes .* pass --cfg.max_resolution=836 or less;",
    ):
        write(max_resolution=0, page_size=2_097_152, **settings)
    assert write(max_resolution=836, page_size=2_097_152, **settings).widths[0] == 836


# ----------------------------------------------------------------------------------- old and new


def test_an_old_pair_stays_until_the_new_one_is_whole(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(subset=5).path
    old = (path.read_bytes(), beton.sidecar_path(path).read_bytes())
    seen: list[tuple[bytes, bytes | None]] = []

    def look() -> None:
        sidecar = beton.sidecar_path(path)
        seen.append((path.read_bytes(), sidecar.read_bytes() if sidecar.exists() else None))

    # Every change of a name in the folder, and the state after it.
    def watched(function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **options: Any) -> None:
            function(*args, **options)
            look()

        return call

    with monkeypatch.context() as patch:
        patch.setattr(ffcv_r50.files.os, "replace", watched(os.replace))  # type: ignore[attr-defined]
        patch.setattr(Path, "unlink", watched(Path.unlink))
        write(subset=6)
    new = (path.read_bytes(), beton.sidecar_path(path).read_bytes())
    states = [state for state, _ in itertools.groupby(seen)]
    assert states == [old, (old[0], None), (new[0], None), new]
    assert json.loads(old[1])["num_samples"] == 5
    assert json.loads(new[1])["num_samples"] == 6


def test_a_failed_writing_keeps_the_old_pair(write: Write, damaged: Path) -> None:
    path = write().path
    old = [file.read_bytes() for file in (path, beton.sidecar_path(path))]
    with pytest.raises(UserError):
        write(data_dir=str(damaged))
    assert [file.read_bytes() for file in (path, beton.sidecar_path(path))] == old


@pytest.mark.parametrize("failing", [1, 2, 3, 4, 5, 6])
def test_a_full_disk_shows_before_the_old_files_go(
    failing: int, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write().path
    old = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert len(old) == 3
    calls = itertools.count(1)
    sync = os.fsync

    def full(descriptor: int) -> None:
        if next(calls) == failing:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write(subset=3)
    assert {name: (path.parent / name).read_bytes() for name in old} == old
    # With the last one all images are journaled: those are worth keeping.
    assert (len([*path.parent.iterdir()]) > 3) == (failing == 6)
    assert write(subset=3).num_samples == 3
    assert {file.name for file in path.parent.iterdir()} == {*old}


# ---------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("write_path", "message"),
    [
        ("{}", r"^cfg.write_path: {} is a folder; name the .beton file to write$"),
        ("{}/no/x.beton", r"^cfg.write_path: there is no folder {}/no; make it first$"),
    ],
)
def test_a_wrong_target(write: Write, tmp_path: Path, write_path: str, message: str) -> None:
    with pytest.raises(UserError, match=message.format(tmp_path)):
        write(write_path=write_path.format(tmp_path))


def test_a_target_without_permission(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UserError, match=rf"^cfg.write_path: no permission to write in {tmp_path}$"):
        write()


def test_names_that_are_not_utf_8(write: Write, tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd" / os.fsdecode(b"caf\xe9")
    folder.mkdir(parents=True)
    shutil.copy(tree / "ant" / "00.png", folder / os.fsdecode(b"\xff.png"))
    (folder / "x.png").touch()
    dataset = write(data_dir=str(tmp_path / "odd"), on_error="skip")
    assert dataset.num_samples == 1
    assert dataset.sidecar is not None
    assert dataset.sidecar.classes == ["caf\ufffd"]
    assert dataset.sidecar.skipped[0]["path"] == "caf\ufffd/x.png"


def test_names_that_are_no_text(tree: Path, write: "Write", tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"a\xff")
    odd.symlink_to(tree)
    written = write(data_dir=str(odd))
    assert written.sidecar is not None
    assert written.sidecar.settings["data_dir"] == f"{tmp_path}/a\ufffd"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compress_probability": 0.5}, "add --cfg.write_mode=proportion, or leave it out"),
        (
            {"smart_threshold": 2.0, "write_mode": "raw"},
            "cfg.smart_threshold: has no effect with write_mode=raw",
        ),
    ],
)
def test_settings_without_effect_are_refused(
    write: "Write", settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        write(**settings)


@pytest.mark.parametrize("kind", ["pipe", "link", "folder for the sidecar"])
def test_what_a_file_cannot_replace_is_refused(tree: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.beton"
    message = "no regular file; name another"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("there.beton")
        message = f"is a link to {tmp_path}/there.beton; name that"
    else:
        beton.sidecar_path(path).mkdir()
    with pytest.raises(UserError, match=message):
        writing.write(Writing(data_dir=str(tree), write_path=str(path)))
