"""A table of paths and labels."""

from collections.abc import Sequence
from pathlib import Path

from ffcv_r50.errors import UserError
from writers.sources import SOURCES, SourceOptions, arrow, tables
from writers.sources.files import Files
from writers.sources.labels import Labels


@SOURCES.register("manifest")
class ManifestOptions(SourceOptions):
    """A table of `path` and `label`: .csv, .jsonl, .parquet, or .txt with a path and a label a line."""

    @classmethod
    def recognises(cls, data_dir: Path, split: str) -> bool:
        """A file with such a name; of Parquet files those with a column ``path``."""
        if not data_dir.is_file() or data_dir.suffix not in tables.SUFFIXES:
            return False
        return data_dir.suffix != ".parquet" or arrow.has_column(data_dir, "path")

    def build(self, data_dir: str, split: str) -> Files:
        """Read the table, which is of one split."""
        table = Path(data_dir).expanduser()
        if not table.is_file():
            raise UserError(f"cfg.data_dir: there is no file {table}; name the table")
        return list_rows(table)


def list_rows(table: Path) -> Files:
    """The images that a table names, in its order; paths are absolute or relative to its folder.

    Raises:
        UserError: see :func:`tables.rows`, :meth:`Labels.resolve`; or a path is there twice, or none.
    """
    paths: list[str] = []
    labels = Labels()
    for row in tables.rows(table):
        paths.append(row.path)
        labels.add(row.label)
    if not paths:
        raise UserError(f"{table}: has no rows")
    if (twice := _repeated(paths)) is not None:
        first = paths.index(paths[twice])
        raise UserError(
            f"{table}, row {twice + 1:,}: {paths[twice]} is there already, in row {first + 1:,}; "
            "remove one"
        )
    classes, numbers = labels.resolve(lambda i: f"{table}, row {i + 1:,}")
    return Files(table, classes, paths, numbers, 0, table.parent, paths)


def _repeated(paths: Sequence[str]) -> int | None:
    """The first row whose path is in an earlier one."""
    seen: set[str] = set()
    for i, path in enumerate(paths):
        if len(seen) == i:
            seen.add(path)
        if len(seen) == i:
            return i
    return None
