"""What is read of Parquet files, with pyarrow, which is an extra."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ffcv_r50.errors import UserError

ERRORS = (OSError, ValueError, TypeError, NotImplementedError)
"""What pyarrow's errors are kinds of."""


def open_file(path: Path) -> Any:
    """A Parquet file as ``pyarrow.parquet.ParquetFile``, to be used as a context.

    Raises:
        UserError: pyarrow is not installed, or this is no whole Parquet file.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path}: needs pyarrow: pip install 'ffcv_r50[parquet]'") from error
    try:
        return parquet.ParquetFile(path)
    except ERRORS as error:
        raise UserError(
            f"{path}: not a whole Parquet file ({reason(error)}); download it again"
        ) from error


def has_column(path: Path, name: str) -> bool:
    """Whether a Parquet file can be opened and has such a column."""
    try:
        with open_file(path) as file:
            return name in file.schema_arrow.names
    except UserError:
        return False


def rows(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The rows of some columns, a batch of them in memory at a time.

    Raises:
        UserError: see :func:`open_file`; or a column is missing, or damaged.
    """
    with open_file(path) as file:
        known = file.schema_arrow.names
        for column in columns:
            if column not in known:
                raise UserError(f"{path}: has no column '{column}', only {', '.join(known)}")
        try:
            for batch in file.iter_batches(columns=list(columns)):
                yield from batch.to_pylist()
        except ERRORS as error:
            raise UserError(f"{path}: is damaged ({reason(error)}); download it again") from error


def reason(error: Exception) -> str:
    """What pyarrow says of an error, without the lines that follow."""
    return str(error).partition("\n")[0].rstrip(".")
