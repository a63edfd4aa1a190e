import io
from pathlib import Path

import ffcv.memory_allocator
import ffcv.reader
import numpy as np
import pytest

from ffcv_r50.data import beton
from writers.beton_writer import BetonWriter

PAGE = 1 << 21


def build(path: Path, blobs: list[bytes], capacity: int) -> int:
    """A file of one-pixel-high raw images with these bytes."""
    with open(path, "wb") as file:
        writer = BetonWriter(file, capacity, PAGE)
        for i, blob in enumerate(blobs):
            writer.add(beton.MODE_RAW, len(blob) // 3 // 60, 60, blob, i % 7)
        return writer.finish()


def random_blobs(count: int, largest: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [rng.bytes(180 * int(n)) for n in rng.integers(1, largest // 180, count)]


@pytest.mark.parametrize(
    "blobs",
    [
        random_blobs(40, PAGE),  # most do not fit into what is left
        random_blobs(40, PAGE // 50),
        [bytes(180 * (PAGE // 180))] * 3,  # a page each
        [b"x" * 180],
    ],
    ids=["large", "small", "whole pages", "one"],
)
def test_samples_never_cross_a_page(tmp_path: Path, blobs: list[bytes]) -> None:
    path = tmp_path / "x.beton"
    size = build(path, blobs, len(blobs))
    assert path.stat().st_size == size
    dataset = beton.Beton(path)
    assert dataset.num_samples == len(blobs)
    assert dataset.page_size == PAGE
    np.testing.assert_array_equal(dataset.labels, np.arange(len(blobs)) % 7)
    pages = set()
    for i, blob in enumerate(blobs):
        start, end = int(dataset.offsets[i]), int(dataset.offsets[i] + dataset.sizes[i])
        assert dataset.read(i) == blob
        assert start // PAGE == (end - 1) // PAGE
        pages.add(start // PAGE)
    assert pages == set(range(1, len(pages) + 1))  # without holes, behind the metadata
    # A new page is opened only where it is needed.
    for i in range(1, len(blobs)):
        if dataset.offsets[i] // PAGE != dataset.offsets[i - 1] // PAGE:
            left = PAGE - (dataset.offsets[i - 1] + dataset.sizes[i - 1]) % PAGE
            assert left % PAGE < dataset.sizes[i]


def test_stock_ffcv_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    blobs = random_blobs(20, PAGE)
    build(path, blobs, len(blobs))
    stock = ffcv.reader.Reader(str(path))
    assert stock.field_names == ["image", "label"]
    assert [type(handler).__name__ for handler in stock.handlers.values()] == [
        "RGBImageField",
        "IntField",
    ]
    assert stock.num_samples == 20
    assert stock.page_size == PAGE
    table = stock.alloc_table
    np.testing.assert_array_equal(table["sample_id"], np.arange(20))
    np.testing.assert_array_equal(table["ptr"], stock.metadata["f0"]["data_ptr"])
    np.testing.assert_array_equal(table["size"], [len(blob) for blob in blobs])
    np.testing.assert_array_equal(stock.metadata["f1"], np.arange(20) % 7)


@pytest.mark.parametrize("capacity", [1, 86_000, 88_000])  # 24 bytes each around 2 MiB
def test_pages_begin_where_stock_ffcv_begins_them(tmp_path: Path, capacity: int) -> None:
    path = tmp_path / "x.beton"
    build(path, [b"x" * 180], capacity)
    stock = ffcv.reader.Reader(str(path))
    metadata_start = stock.header.nbytes + stock.field_descriptors.nbytes
    end = metadata_start + capacity * stock.metadata_type.itemsize
    allocator = ffcv.memory_allocator.MemoryAllocator(str(path), end, PAGE)
    assert stock.metadata["f0"]["data_ptr"][0] == allocator.offset


def test_samples_that_were_left_out_leave_no_trace_but_room(tmp_path: Path) -> None:
    blobs = random_blobs(5, PAGE // 50)
    build(tmp_path / "five.beton", blobs, capacity=5)
    build(tmp_path / "of_nine.beton", blobs, capacity=9)
    assert (tmp_path / "five.beton").read_bytes() == (tmp_path / "of_nine.beton").read_bytes()


def test_a_sample_larger_than_a_page_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit into a page"):
        BetonWriter(io.BytesIO(), 1, PAGE).add(beton.MODE_RAW, 1, 1, bytes(PAGE + 1), 0)
