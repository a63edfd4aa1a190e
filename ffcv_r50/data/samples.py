"""What each sample is called and where its bytes came from: ``train.beton.samples.gz``.

The format has no room for it, so our writer leaves a file beside the dataset: JSON lines, compressed, one
for each sample in their order, ``["n01440764/n01440764_10026.JPEG", SOURCE, STORED]``. ``zcat`` shows it.
It consists of one gzip member for each page, so that it can be continued and joined. A dataset
without it (stock FFCV's, or one that was copied alone) is as good for training.
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ffcv_r50.data.beton import content_digest
from ffcv_r50.errors import UserError
from ffcv_r50.files import regular_file

LONGEST_LINE = 1 << 16
"""Bytes; a longer one is not ours."""


class Sample(NamedTuple):
    """One line."""

    name: str
    """Of the image at its source: in an image folder the path below the folder of the classes."""
    source: str
    """Hash of the image file that was read: the same image in two datasets, however each stores it."""
    stored: str
    """Hash of the bytes in the ``.beton`` file."""


def path_beside(beton: str | os.PathLike[str]) -> Path:
    """``train.beton`` -> ``train.beton.samples.gz``."""
    return Path(f"{os.fspath(beton)}.samples.gz")


def digest(content: bytes) -> str:
    """BLAKE2b as 32 hexadecimal digits."""
    return content_digest([content])


def pack(samples: Iterable[Sample]) -> bytes:
    """The gzip member that holds these lines; the same for the same lines."""
    lines = [json.dumps(s, ensure_ascii=False, separators=(",", ":")) + "\n" for s in samples]
    return gzip.compress("".join(lines).encode(errors="replace"), 6, mtime=0)


def read(beton: str | os.PathLike[str], num_samples: int) -> Iterator[Sample] | None:
    """The lines of a dataset, one after another; None where it has no such file.

    Args:
        beton: the ``.beton`` file.
        num_samples: in it.

    Raises:
        UserError: while reading: damaged, not such a file, or of another dataset.
    """
    path = path_beside(beton)
    return _lines(path, num_samples) if path.exists() else None


def _lines(path: Path, num_samples: int) -> Iterator[Sample]:
    count = 0
    try:
        with open(path, "rb", opener=regular_file) as packed, gzip.open(packed) as file:
            while line := file.readline(LONGEST_LINE):
                if count == num_samples:  # a few bytes can stand for millions of lines
                    raise _of_another(path, f"more than {count:,}", num_samples)
                name, *digests = json.loads(line)
                sample = Sample(str(name), *digests)
                if not all(re.fullmatch("[0-9a-f]{32}", digest) for digest in sample[1:]):
                    raise ValueError("a line has no hashes")
                count += 1
                yield sample
    except (OSError, EOFError, zlib.error, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged at sample {count:,} ({error}); write the dataset again, or remove this file"
        ) from error
    if count != num_samples:
        raise _of_another(path, f"{count:,}", num_samples)


def _of_another(path: Path, described: str, num_samples: int) -> UserError:
    return UserError(
        f"{path}: describes {described} samples, the dataset has {num_samples:,}; it belongs to another "
        "file, remove it"
    )
