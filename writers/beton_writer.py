"""Laying images out as a ``.beton`` file (the format: :mod:`ffcv_r50.data.beton`)."""

from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ffcv_r50.data import beton
from writers.fields import LABEL, image_and

PAGE_SIZE = 1 << 23
"""Bytes; FFCV's default. A power of two, at least 2 MiB."""


class BetonWriter:
    """Writes samples in the order they are added; the header, which makes it a dataset, last.

    Pages start at the first multiple of the page size after the metadata, as in FFCV. A sample that
    does not fit into the rest of a page opens the next one.

    Args:
        file: open for writing.
        capacity: samples there will be at most; their metadata lies before the pages.
        page_size: bytes.
        after_page: called whenever a page has been written, before the sample is added that did not
            fit any more; at the end for the last page.
        fields: [fields] of the samples, if not an image and a label.
        num_blocks: pieces of data there will be at most, if not one a sample.
    """

    num_samples: int
    """Samples added."""
    content: str
    """The finished file's :attr:`ffcv_r50.data.beton.Identity.content`."""

    def __init__(
        self,
        file: BinaryIO,
        capacity: int,
        page_size: int = PAGE_SIZE,
        after_page: Callable[[], None] = lambda: None,
        fields: npt.NDArray[Any] | None = None,
        num_blocks: int | None = None,
    ) -> None:
        self._file = file
        self.page_size = page_size
        self._after_page = after_page
        self._fields = image_and(LABEL) if fields is None else fields
        self.metadata = np.zeros(capacity, beton.metadata_dtype([*self._fields["type_id"]]))
        """[capacity] a record for each sample."""
        self._table = np.zeros(capacity if num_blocks is None else num_blocks, beton.ALLOCATION)
        self._num_blocks = 0
        metadata_end = beton.HEADER.itemsize + self._fields.nbytes + self.metadata.nbytes
        self._page_start = -(-metadata_end // page_size) * page_size
        self._page: list[bytes] = []
        self._filled = 0  # bytes of the page
        self.num_samples = 0

    def add(self, mode: int, height: int, width: int, data: bytes, *ints: int) -> None:
        """Append one image, at most a page large, with its label and the fields behind it."""
        position = self.add_block(self.num_samples, data)
        self.metadata[self.num_samples] = ((mode, width, height, position), *ints)
        self.num_samples += 1

    def add_block(self, sample: int, data: bytes) -> int:
        """Append data of a sample whose metadata the caller fills in; at most a page of it.

        Returns:
            Its position in the file.
        """
        if len(data) > self.page_size:
            raise ValueError(f"{len(data)} bytes do not fit into a page of {self.page_size}")
        if self._filled + len(data) > self.page_size:
            self._flush()
        position = self._page_start + self._filled
        self._page.append(data)
        self._filled += len(data)
        self._note(sample, position, len(data))
        return position

    def restore(self, rows: Iterable[tuple[int, ...]]) -> None:
        """Go past a page that is in the file already.

        Args:
            rows: mode, height, width, bytes, label and the fields behind it of each of its samples.
        """
        position = self._page_start
        for mode, height, width, size, *ints in rows:
            self.metadata[self.num_samples] = ((mode, width, height, position), *ints)
            self._note(self.num_samples, position, size)
            self.num_samples += 1
            position += size
        self._page_start += self.page_size

    def _note(self, sample: int, position: int, size: int) -> None:
        self._table[self._num_blocks] = (sample, position, size)
        self._num_blocks += 1

    def _flush(self) -> None:
        self._file.seek(self._page_start)
        self._file.writelines(self._page)
        self._file.write(bytes(self.page_size - self._filled))
        self._page_start += self.page_size
        self._page.clear()
        self._filled = 0
        self._after_page()

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
        table = self._table[: self._num_blocks]
        self._file.write(table.view(np.uint8).data)
        size = self._file.tell()
        self._file.truncate()
        self._file.seek(beton.HEADER.itemsize)
        self._file.write(self._fields.tobytes())
        self._file.write(self.metadata.view(np.uint8).data)
        self._file.seek(0)
        self._file.write(header.tobytes())
        records = (header, self._fields, self.metadata[: self.num_samples], table)
        self.content = beton.content_digest(part.view(np.uint8).data for part in records)
        return size
