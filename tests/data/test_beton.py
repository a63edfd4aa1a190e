"""Opening ``.beton`` files: stock FFCV's with other fields, and everything that is no whole file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ffcv.fields import FloatField, IntField, JSONField, RGBImageField
from ffcv.writer import DatasetWriter

from benchmarks.beton_parts import parts
from ffcv_r50.data.beton import FIELD, HEADER, Beton, sidecar_path
from ffcv_r50.errors import UserError
from ffcv_r50.files import JSON_BYTES
from tests.data.conftest import encode, make_image, write_beton

IMAGES = [make_image(24 + i, 30, seed=i) for i in range(6)]


class Samples:
    """What FFCV's writer wants: an indexable of tuples."""

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self._rows[index]


def stock(path: Path, fields: dict[str, Any], rows: list[tuple[Any, ...]]) -> Path:
    """A file written by FFCV itself, with these fields."""
    writer = DatasetWriter(str(path), fields, num_workers=1)
    writer.from_indexed_dataset(Samples(rows))
    return path


@pytest.mark.filterwarnings("ignore")
def test_other_fields_of_stock_ffcv_do_not_get_in_the_way(tmp_path: Path) -> None:
    fields = {
        "index": IntField(),
        "weight": FloatField(),
        "image": RGBImageField(write_mode="raw"),
        "about": JSONField(),
        "label": IntField(),
    }
    rows = [(1000 + i, 0.5, image, {"i": i}, i % 3) for i, image in enumerate(IMAGES)]
    beton = Beton(stock(tmp_path / "x.beton", fields, rows))
    assert beton.labels.tolist() == [0, 1, 2, 0, 1, 2]
    for i, image in enumerate(IMAGES):
        stored = np.frombuffer(beton.read(i), np.uint8)
        assert np.array_equal(stored.reshape(beton.heights[i], beton.widths[i], 3), image)


@pytest.mark.filterwarnings("ignore")
def test_fields_that_could_be_the_label_are_named(tmp_path: Path) -> None:
    fields = {"image": RGBImageField(write_mode="raw"), "fine": IntField(), "coarse": IntField()}
    path = stock(tmp_path / "x.beton", fields, [(image, i, 0) for i, image in enumerate(IMAGES)])
    expected = r"needs one int field .* named 'label'; its fields are image, fine, coarse"
    with pytest.raises(UserError, match=expected):
        Beton(path)


@pytest.mark.filterwarnings("ignore")
def test_a_label_that_counts_something_else(tmp_path: Path) -> None:
    fields = {"image": RGBImageField(write_mode="raw"), "id": IntField()}
    path = stock(tmp_path / "x.beton", fields, [(image, 2**40) for image in IMAGES])
    with pytest.raises(UserError, match=r"counts to 1,099,511,627,776, so it does not hold"):
        Beton(path)


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    path = tmp_path / "whole.beton"
    write_beton(path, [encode(image) for image in IMAGES], page_size=1 << 12)
    return path.read_bytes()


def header(content: bytes, **values: int) -> bytes:
    changed = bytearray(content)
    view = np.frombuffer(changed, HEADER, count=1)
    for name, value in values.items():
        view[name] = value
    return bytes(changed)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"version": 3}, "not a .beton file of version 2"),
        ({"num_samples": 0}, "holds no samples"),
        ({"num_samples": 10**9}, "truncated, its metadata should end"),
        ({"num_samples": 2**40}, "damaged, its header says 1,099,511,627,776 samples"),
        ({"page_size": 0}, "damaged, its header says 6 samples in pages of 0 bytes"),
        ({"num_fields": 60000}, "truncated, its field list should end"),
        ({"num_fields": 1}, "needs one int field"),
        ({"alloc_table_ptr": 0}, "its writer did not finish"),
        ({"alloc_table_ptr": 2**40}, "its allocation table at byte"),
    ],
)
def test_a_header_that_says_otherwise(
    tmp_path: Path, whole: bytes, values: dict[str, int], message: str
) -> None:
    path = tmp_path / "x.beton"
    path.write_bytes(header(whole, **values))
    with pytest.raises(UserError, match=message):
        Beton(path)


def image_at(content: bytes, offset: int, size: int, shape: tuple[int, int] | None = None) -> bytes:
    """The last sample lies there, in the metadata and in the allocation table; raw with a shape."""
    changed = bytearray(content)
    _, _, metadata, table = parts(changed)
    image = metadata["f0"][5:]
    (row,) = np.flatnonzero(table["ptr"] == image["data_ptr"][0])
    table["ptr"][row], table["size"][row] = offset, size
    image["data_ptr"] = offset
    if shape is not None:
        image["mode"], image["height"], image["width"] = 1, *shape
    return bytes(changed)


@pytest.mark.parametrize(
    ("offset", "size", "shape"),
    [
        # 65535 x 144 pixels "at" 2^63 - their bytes + 9: begin and size sum up to less than nothing.
        (2**63 - 28_311_120 + 9, 28_311_120, (144, 65535)),
        (2**63 - 1, 1000, None),
        (2**64 - 1000, 1000, None),
        (2**64 - 1000, 1008, None),
        (5000, 2**63, None),
        (5000, 2**64 - 1, None),
        (0, 100, None),  # the header is no image
        (HEADER.itemsize + 2 * FIELD.itemsize, 10, None),  # nor are the metadata
    ],
)
def test_a_sample_that_lies_elsewhere(
    tmp_path: Path, whole: bytes, offset: int, size: int, shape: tuple[int, int] | None
) -> None:
    path = tmp_path / "x.beton"
    path.write_bytes(image_at(whole, offset, size, shape))
    with pytest.raises(UserError, match="sample 5 and 0 others do not lie inside it"):
        Beton(path)


def test_cut_at_any_length(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.beton"
    for length in [*range(0, 3000, 37), *range(3000, len(whole), 499), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"truncated|not a \.beton file"):
            Beton(path)


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "no.beton", tmp_path):
        with pytest.raises(UserError, match=f"^{path}: cannot be read"):
            Beton(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a readable sidecar"),
        ("[]", "not a readable sidecar"),
        ("[" * 100_000, r"not a readable sidecar \(is nested too deep\)"),
        (" " * (JSON_BYTES + 1), r"not a readable sidecar \(has more than 64 MiB\)"),
        ('{"num_samples": 6}', "not a readable sidecar"),
        ({"classes": None}, "its classes are no list of names"),
        ({"classes": "abc"}, "its classes are no list of names"),
        ({"classes": []}, "its classes are no list of names"),
        ({"classes": ["a", 1, "c"]}, "its classes are no list of names"),
        ({"num_samples": 7}, "describes 7 samples, the dataset has 6"),
        ({"classes": ["a", "b"]}, "labels run from 0 to 2, expected 0 to 1"),
    ],
)
def test_a_sidecar_that_is_none(
    tmp_path: Path, whole: bytes, content: str | dict[str, Any], message: str
) -> None:
    path = tmp_path / "x.beton"
    path.write_bytes(whole)
    good = {"classes": ["a", "b", "c"], "num_samples": 6, "class_counts": [2, 2, 2]}
    sidecar_path(path).write_text(json.dumps(good))
    assert Beton(path).num_classes == 3
    text = content if isinstance(content, str) else json.dumps(good | content)
    sidecar_path(path).write_text(text)
    with pytest.raises(UserError, match=message):
        Beton(path)
