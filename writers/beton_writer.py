"""Laying images out as a ``.beton`` file (the format: :mod:`ffcv_r50.data.beton`)."""

from typing import BinaryIO

import numpy as np

from ffcv_r50.data import beton

PAGE_SIZE = 1 << 23
"""Bytes; FFCV's default. A power of two, at least 2 MiB."""

_FIELDS = ((beton.TYPE_IMAGE, b"image"), (beton.TYPE_INT, b"label"))
"""As ffcv-imagenet writes them."""


class BetonWriter:
    """Writes samples in the order they are added; the header, which makes it a dataset, last.

    Pages start at the first multiple of the page size after the metadata, as in FFCV. A sample that
    does not fit into the rest of a page opens the next one.

    Args:
        file: open for writing, empty.
        capacity: samples there will be at most; their metadata lies before the pages.
        page_size: bytes.
    """

    num_samples: int
    """Samples added."""

    def __init__(self, file: BinaryIO, capacity: int, page_size: int = PAGE_SIZE) -> None:
        self._file = file
        self.page_size = page_size
        self._metadata = np.zeros(
            capacity, beton.metadata_dtype([type_id for type_id, _ in _FIELDS])
        )
        self._table = np.zeros(capacity, beton.ALLOCATION)
        self._fields = np.zeros(len(_FIELDS), beton.FIELD)
        for field, (type_id, name) in zip(self._fields, _FIELDS, strict=True):
            field["type_id"] = type_id
            field["name"][: len(name)] = np.frombuffer(name, np.uint8)
        metadata_end = beton.HEADER.itemsize + self._fields.nbytes + self._metadata.nbytes
        self._page_start = -(-metadata_end // page_size) * page_size
        self._page = bytearray()
        self.num_samples = 0

    def add(self, mode: int, height: int, width: int, data: bytes, label: int) -> None:
        """Append one image, at most a page large."""
        if len(data) > self.page_size:
            raise ValueError(f"{len(data)} bytes do not fit into a page of {self.page_size}")
        if len(self._page) + len(data) > self.page_size:
            self._flush()
        position = self._page_start + len(self._page)
        self._page += data
        self._metadata[self.num_samples] = ((mode, width, height, position), label)
        self._table[self.num_samples] = (self.num_samples, position, len(data))
        self.num_samples += 1

    def _flush(self) -> None:
        self._file.seek(self._page_start)
        self._file.write(self._page.ljust(self.page_size, b"\0"))
        self._page_start += self.page_size
        self._page.clear()

    def finish(self) -> int:
        """Write what is left: the last page, the table, the metadata and the header.

        Returns:
            The size of the file in bytes.
        """
        if self._page:
            self._flush()
        header = np.zeros(1, beton.HEADER)
        header["version"] = beton.FORMAT_VERSION
        header["num_fields"] = len(self._fields)
        header["page_size"] = self.page_size
        header["num_samples"] = self.num_samples
        header["alloc_table_ptr"] = self._page_start
        self._file.seek(self._page_start)
        self._file.write(self._table[: self.num_samples].tobytes())
        size = self._file.tell()
        self._file.seek(beton.HEADER.itemsize)
        self._file.write(self._fields.tobytes())
        self._file.write(self._metadata.tobytes())
        self._file.seek(0)
        self._file.write(header.tobytes())
        return size
