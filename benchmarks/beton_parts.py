"""The parts of a ``.beton`` file of an image and a label, to be changed where they lie."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ffcv_r50.data.beton import ALLOCATION, FIELD, HEADER, TYPE_IMAGE, TYPE_INT, metadata_dtype


class Parts(NamedTuple):
    """Views of a file's bytes; their dtypes are those of :mod:`ffcv_r50.data.beton`."""

    header: np.void
    fields: npt.NDArray[Any]
    """[2]."""
    metadata: npt.NDArray[Any]
    """[samples] ``f0`` of the image, ``f1`` the label."""
    table: npt.NDArray[Any]
    """[stored blocks]."""


def parts(content: bytearray) -> Parts:
    """Of a whole file with these two fields, in this order."""
    header = np.frombuffer(content, HEADER, 1)[0]
    fields = np.frombuffer(content, FIELD, 2, HEADER.itemsize)
    begin = HEADER.itemsize + fields.nbytes
    kind = metadata_dtype([TYPE_IMAGE, TYPE_INT])
    metadata = np.frombuffer(content, kind, int(header["num_samples"]), begin)
    table = np.frombuffer(content, ALLOCATION, offset=int(header["alloc_table_ptr"]))
    return Parts(header, fields, metadata, table)
