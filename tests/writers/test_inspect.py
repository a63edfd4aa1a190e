"""What is said of a dataset, against a loop over its images."""

import gzip
import io
import os
import re
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ffcv_r50.data import beton, jpeg, samples
from ffcv_r50.errors import UserError
from tests.data.conftest import encode, write_beton
from tests.writers.serial import in_this_process
from writers import pool, writing
from writers.config import Writing
from writers.inspect import __main__ as program
from writers.inspect import compare, reading, stats, summary, verify

PAGE = 1 << 14
CLASSES = {"ant": 9, "bee": 4, "cat": 14}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth images of many sizes; one cannot be read."""
    root = tmp_path_factory.mktemp("tree")
    rng = np.random.default_rng(0)
    for name, count in CLASSES.items():
        (root / name).mkdir()
        for i in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
            size = (int(rng.integers(20, 70)), int(rng.integers(20, 70)))
            coarse.resize(size, Image.Resampling.BICUBIC).save(root / name / f"{i:02}.png")
    (root / "cat" / "13.png").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def written(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It as a dataset, half of it raw."""
    path = tmp_path_factory.mktemp("written") / "x.beton"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "ordered_map", in_this_process)
        writing.write(
            Writing(
                data_dir=str(tree), write_path=str(path), write_mode="proportion", on_error="skip"
            ),
            PAGE,
        )
    return path


@pytest.fixture
def path(written: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, to be changed."""
    for file in written.parent.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / "x.beton"


def pixels(dataset: beton.Beton, i: int) -> npt.NDArray[np.uint8]:
    data = dataset.read(i)
    if dataset.modes[i] == beton.MODE_RAW:
        return np.frombuffer(data, np.uint8).reshape(dataset.heights[i], dataset.widths[i], 3)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_the_summary_is_that_of_a_loop(
    written: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = beton.Beton(written)
    found = summary.summary(dataset)
    total = sum(CLASSES.values()) - 1
    sizes = [pixels(dataset, i).shape for i in range(total)]
    jpegs = [i for i in range(total) if dataset.read(i)[:2] == b"\xff\xd8"]
    assert found.class_counts.tolist() == [9, 4, 13]
    assert found.classes == ["ant", "bee", "cat"]
    assert (found.jpeg, found.raw) == (len(jpegs), total - len(jpegs))
    assert 5 < found.jpeg < total - 5
    assert found.jpeg_bytes == sum(len(dataset.read(i)) for i in jpegs)
    assert found.raw_bytes == sum(3 * h * w for h, w, _ in sizes) - sum(
        3 * sizes[i][0] * sizes[i][1] for i in jpegs
    )
    assert found.median == (
        sorted(w for _, w, _ in sizes)[total // 2 - 1 : total // 2 + 1][0] / 2
        + sorted(w for _, w, _ in sizes)[total // 2] / 2,
        np.median([h for h, _, _ in sizes]),
    )
    largest = max(sizes, key=lambda size: size[0] * size[1])
    assert found.largest == (largest[1], largest[0])
    assert (found.tiled, found.looked_at) == (len(jpegs), len(jpegs))
    assert found.num_bytes == written.stat().st_size
    assert found.skipped == 1
    assert program.main([str(written)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{written}: 26 samples of 3 classes; 1 images were left out"
    assert lines[-1].split() == ["cat", "13", "█" * summary.BAR]
    assert "4 (bee) to 13 (cat) samples, median 9" in lines[-4]


def test_other_fields_are_named(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.beton"
    monkeypatch.setattr(pool, "ordered_map", in_this_process)
    for asked in (False, True):
        cfg = Writing(data_dir=str(tree), write_path=str(path), on_error="skip", index_field=asked)
        writing.write(cfg, PAGE)
        assert program.main([str(path), "--verify"]) == 0
        line = "  fields   image (RGB image), label (int), index (int)\n"
        assert (line in capsys.readouterr().out) == asked


def test_many_classes_are_counted_together() -> None:
    rng = np.random.default_rng(0)
    for counts in (np.arange(1000), rng.integers(3, 17, 40), np.full(500, 7)):
        rows = summary.histogram(counts, [""] * len(counts))
        assert sum(n for _, n, _ in rows) == len(counts)
        for name, n, _ in rows:
            words = name.replace(",", "").split()
            low, high = int(words[0]), int(words[-2])
            assert n == sum(low <= count <= high for count in counts)
    assert rows == [("7 samples", 500, " classes")]


def test_a_jpeg_without_restart_markers_is_not_tiled(path: Path) -> None:
    dataset = beton.Beton(path)
    i = int(np.flatnonzero(dataset.modes == beton.MODE_JPEG)[0])
    buffer = io.BytesIO()
    Image.open(io.BytesIO(dataset.read(i))).save(buffer, "JPEG", quality=50)
    assert len(buffer.getvalue()) < dataset.sizes[i]
    with open(path, "r+b") as file:
        file.seek(dataset.offsets[i])
        file.write(buffer.getvalue())
    found = summary.summary(beton.Beton(path))
    assert found.tiled == found.looked_at - 1


def test_means_and_deviations_are_those_of_a_loop(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = beton.Beton(path)
    images = [pixels(dataset, i).reshape(-1, 3).astype(float) for i in range(dataset.num_samples)]
    mean = np.mean([image.mean(0) for image in images], 0)
    std = np.sqrt(np.mean([((image - mean) ** 2).mean(0) for image in images], 0))
    assert program.main([str(path), "--stats"]) == 0
    out = capsys.readouterr().out
    assert f"mean     {', '.join(f'{v:.4f}' for v in mean)} (of 1: " in out
    found = stats.stats(dataset)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, std, rtol=1e-10)
    assert found.damaged == 0


def test_decoding_is_pillows(written: Path) -> None:
    dataset = beton.Beton(written)
    for i in range(dataset.num_samples):
        np.testing.assert_array_equal(
            reading.decode(dataset, i, dataset.read(i)), pixels(dataset, i)
        )


# ------------------------------------------------------------------------------------------ verify


def test_a_whole_file_is_verified(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([str(written), "--verify"]) == 0
    assert capsys.readouterr().out.endswith("verified 26 samples: 0 findings\n")


def found_in(path: Path) -> list[str]:
    """What --verify finds, or why the file is refused."""
    try:
        return [reason for _, reason in verify.findings(beton.Beton(path))]
    except UserError as error:
        return [str(error)]


def test_a_flipped_byte_anywhere_is_found(path: Path) -> None:
    """In each stored block at its begin, its end and inside; in header, fields, metadata, table, padding."""
    dataset = beton.Beton(path)
    assert found_in(path) == []
    size = path.stat().st_size
    table = size - 24 * dataset.num_samples
    ends = dataset.offsets + dataset.sizes
    places = {0, 2, 4, 8, 16, 24, 40, 1500, 2090, size - 1, table, table + 8, table - 1}
    places |= {dataset.pages.start - 1, dataset.pages.start, int(dataset.offsets[0]) - 1}
    places |= {int(p) for p in dataset.offsets} | {int(p) - 1 for p in ends}
    places |= {int(p) for p in dataset.offsets + dataset.sizes // 2}
    places |= set(range(24, size, 1999))
    padding = set(range(dataset.pages.start, table))
    padding -= {p for a, b in zip(dataset.offsets, ends, strict=True) for p in range(a, b)}
    assert padding & places
    content = bytearray(path.read_bytes())
    with open(path, "r+b", buffering=0) as file:
        for place in sorted(places):
            os.pwrite(file.fileno(), bytes([content[place] ^ 1]), place)
            assert found_in(path), place
            os.pwrite(file.fileno(), content[place : place + 1], place)
    assert found_in(path) == []


def test_what_is_found_is_named(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = beton.Beton(path)
    raw = int(np.flatnonzero(dataset.modes == beton.MODE_RAW)[0])
    lines = list(samples.read(path, 26) or ())
    with open(path, "r+b") as file:
        file.seek(dataset.offsets[raw])
        byte = file.read(1)[0]
        file.seek(dataset.offsets[raw])
        file.write(bytes([byte ^ 1]))
    assert program.main([str(path), "--verify"]) == 1
    out = capsys.readouterr().out
    assert f"sample {raw} ({lines[raw].name}): not the bytes that were written\n" in out
    assert out.endswith("verified 26 samples: 1 findings\n")


def test_without_hashes_what_cannot_be_decoded_is_found(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples.path_beside(path).unlink()
    beton.sidecar_path(path).unlink()
    dataset = beton.Beton(path)
    first, second, *_ = np.flatnonzero(dataset.modes == beton.MODE_JPEG)
    with open(path, "r+b") as file:
        file.seek(dataset.offsets[first])
        file.write(b"no JPEG")
        file.seek(dataset.offsets[second] + dataset.sizes[second] - 60)
        file.write(b"\0" * 60)
    found = [sample for sample, _ in verify.findings(beton.Beton(path))]
    assert found == [first, second]
    assert stats.stats(beton.Beton(path)).damaged == 2
    assert program.main([str(path), "--verify"]) == 1
    assert "(without the writer's hashes: damage that decodes is not seen)" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "damage", ["cut", "text", "flipped", "other count", "long line", "no hash", "no list"]
)
def test_a_damaged_samples_file_is_one_line(damage: str, path: Path) -> None:
    file = samples.path_beside(path)
    content = bytearray(file.read_bytes())
    lines = list(samples.read(path, 26) or ())
    if damage == "cut":
        del content[-20:]
    elif damage == "text":
        content[:] = b"text"
    elif damage == "flipped":
        content[len(content) // 2] ^= 16
    elif damage == "other count":
        content[:] = samples.pack(lines[1:])
    elif damage == "long line":
        content[:] = samples.pack([lines[0]._replace(name="x" * 100_000)])
    elif damage == "no hash":
        content[:] = samples.pack([lines[0]._replace(stored="x")])
    else:
        content[:] = gzip.compress(b"5\n")
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.beton\.samples\.gz: (damaged at sample|describes 25)"):
        program.main([str(path), "--verify"])


# ----------------------------------------------------------------------------------------- compare


def test_images_in_both_are_named(
    written: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another file, with other settings, that shares two images: under other names, one of them."""
    other_tree = tmp_path / "tree"
    (other_tree / "dog").mkdir(parents=True)
    shutil.copy(tree / "bee" / "02.png", other_tree / "dog" / "new.png")
    shutil.copy(tree / "cat" / "05.png", other_tree / "dog")
    Image.new("RGB", (30, 40), "red").save(other_tree / "dog" / "red.png")
    other = tmp_path / "other.beton"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "ordered_map", in_this_process)
        writing.write(Writing(data_dir=str(other_tree), write_path=str(other), jpeg_quality=50))
    capsys.readouterr()
    expected = [
        (11, 1, "bee/02.png", "dog/new.png"),
        (18, 0, "cat/05.png", "dog/05.png"),
    ]
    one, two = beton.Beton(written), beton.Beton(other)
    assert list(compare.pairs(one, two)) == expected
    assert sorted(compare.pairs(two, one)) == sorted((b, a, d, c) for a, b, c, d in expected)
    assert program.main([str(written), f"--compare={other}"]) == 1
    out = capsys.readouterr().out
    assert "  x.beton 11 (bee/02.png, bee) = other.beton 1 (dog/new.png, dog)\n" in out
    assert out.endswith(f"2 images of {written} are also in {other}\n")


def test_without_names_equal_bytes_are_found(
    written: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples.path_beside(path).unlink()
    pairs = list(compare.pairs(beton.Beton(path), beton.Beton(written)))
    assert [(same.first, same.second, same.name) for same in pairs] == [
        (i, i, "") for i in range(26)
    ]
    assert program.main([str(written), f"--compare={path}"]) == 1
    out = capsys.readouterr().out
    assert f"note: {path} has no samples file; " in out
    assert "  ... and 6 more\n" in out


# ---------------------------------------------------------------------------------------- pictures


def test_a_sample_is_extracted(
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = beton.Beton(written)
    jpeg = int(np.flatnonzero(dataset.modes == beton.MODE_JPEG)[0])
    raw = int(np.flatnonzero(dataset.modes == beton.MODE_RAW)[0])
    assert program.main([str(written), f"--extract={jpeg}"]) == 0
    assert Path(f"x_{jpeg}.jpg").read_bytes() == dataset.read(jpeg)
    assert program.main([str(written), f"--extract={raw}", "-o", "y.png"]) == 0
    with Image.open("y.png") as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), pixels(dataset, raw))
    lines = list(samples.read(written, 26) or ())
    assert capsys.readouterr().out.splitlines() == [
        f"x_{jpeg}.jpg: sample {jpeg} ({lines[jpeg].name}), class ant",
        f"y.png: sample {raw} ({lines[raw].name}), class ant",
    ]


def test_thumbnails_show_the_first_of_each_class(written: Path, tmp_path: Path) -> None:
    target = tmp_path / "grid.png"
    assert program.main([str(written), f"--thumbnails={target}"]) == 0
    dataset = beton.Beton(written)
    with Image.open(target) as grid:
        assert grid.size == (2 * 68, 2 * 80)
        for label, (left, top) in enumerate(((0, 0), (68, 0), (0, 80))):
            first = dataset.labels.tolist().index(label)
            expected = Image.fromarray(pixels(dataset, first))
            expected.thumbnail((64, 64))
            box = (left, top, left + expected.width, top + expected.height)
            np.testing.assert_array_equal(np.asarray(grid.crop(box)), np.asarray(expected))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{x}", "--verfy"], "command line: --verfy: "),
        (["{x}", "--extract=26"], "has 26 samples, none is 26"),
        (["{x}", "--extract=-1"], "expected an integer at least 0"),
        (["{x}", "--output=y"], "--output has no effect without --extract=N"),
        (["{x}", "--thumbnails=no/grid.png"], "no/grid.png: its folder does not exist"),
        (["{x}", "--extract=0", "--output=."], r"\.: is a folder; name the file"),
        (["{x}", "--compare=no.beton"], "no.beton: cannot be read"),
        (["no.beton"], "no.beton: cannot be read"),
        (["--verify"], "command line: no file"),
    ],
)
def test_wrong_command_lines(
    words: list[str], message: str, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        program.main([word.format(x=written) for word in words])


# ---------------------------------------------------------------------------------- from strangers


def test_a_samples_file_is_read_no_further_than_there_are_samples(path: Path) -> None:
    """Some kilobytes that stand for millions of lines."""
    lines = list(samples.read(path, 26) or ())
    member = samples.pack([lines[0]] * 10_000)
    samples.path_beside(path).write_bytes(member * 1000)
    read = samples.read(path, 26)
    assert read is not None
    assert [next(read) for _ in range(26)] == lines[:1] * 26
    with pytest.raises(UserError, match="describes more than 26 samples, the dataset has 26"):
        next(read)


def test_work_bombs_are_damaged_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pixels; and a few thousand bytes of JPEG whose every scan goes over many of them."""
    image = encode(np.zeros((16, 16, 3), np.uint8), progressive=True)
    frame, scan = image.index(b"\xff\xc2"), image.rindex(b"\xff\xda")
    side, scans = (8000).to_bytes(2, "big"), image[scan:-2] * 500
    bomb = image[: frame + 5] + side + side + image[frame + 9 : -2] + scans + image[-2:]
    dataset = write_beton(tmp_path / "x.beton", [image, bomb], [(16, 16), (8000, 8000)])
    assert reading.decode(dataset, 0, dataset.read(0)).shape == (16, 16, 3)
    with pytest.raises(reading.Damaged, match=f"^{jpeg.REASONS[jpeg.TOO_MANY_SCANS]}$"):
        reading.decode(dataset, 1, dataset.read(1))
    monkeypatch.setattr(reading, "MAX_PIXELS", 255)
    with pytest.raises(reading.Damaged, match=f"^{re.escape(jpeg.REASONS[jpeg.TOO_LARGE])}$"):
        reading.decode(dataset, 0, dataset.read(0))
