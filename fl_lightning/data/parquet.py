"""Parquet files of the user's own: found by split, read whole, and refused where they are damaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fl_lightning.errors import ConfigurationError, in_one_line

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet


def parquet_files(folder: str | Path, split: str, subfolder: str = "plain_text") -> list[Path]:
    """The Parquet files of one split, in order of their names; raises `ConfigurationError` if there are none."""
    if files := found_files(folder, split, subfolder):
        return files
    raise ConfigurationError(
        f"path {folder} holds no {split}.parquet, {split}-*.parquet or {subfolder}/{split}-*.parquet"
        f"{'' if Path(folder).is_dir() else ' (there is no such folder)'}; give the folder of the Parquet files, or "
        "leave path out to download them"
    )


def found_files(folder: str | Path, split: str, subfolder: str) -> list[Path]:
    """The same, where there may be none."""
    for pattern in (f"{split}.parquet", f"{split}-*.parquet", f"{subfolder}/{split}-*.parquet"):
        if files := sorted(Path(folder).glob(pattern)):
            return files
    return []


def column_names(file: Path) -> list[str]:
    """The names of a file's columns."""
    import pyarrow.parquet  # here, as most runs do not need it and it is slow to import

    with readable(file):
        return pyarrow.parquet.read_schema(file).names


def read_file(file: Path, columns: Sequence[str] | None = None) -> pyarrow.Table:
    """A file, or some of its columns; texts are valid UTF-8.

    Raises:
        ConfigurationError: if it is none, or damaged.
    """
    return read_columns(open_file(file), file, columns)


def open_file(file: Path) -> pyarrow.parquet.ParquetFile:
    """A file of which columns can be read, by `read_columns`; the same errors."""
    import pyarrow.parquet

    with readable(file):
        # As one file: a folder's name such as `year=2009` would become a column.
        return pyarrow.parquet.ParquetFile(file)


def read_columns(opened: pyarrow.parquet.ParquetFile, file: Path, columns: Sequence[str] | None) -> pyarrow.Table:
    """Columns of an open file, all where none are named; the same errors."""
    with readable(file):
        table = opened.read(columns=None if columns is None else list(columns))
        table.validate(full=True)
        return table


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turns whatever pyarrow says of a damaged file into a `ConfigurationError` that names it."""
    import pyarrow

    try:
        yield
    except (OSError, ValueError, MemoryError, pyarrow.ArrowException) as error:
        raise ConfigurationError(f"{file} cannot be read: {in_one_line(error)}; fetch it again or give another path") from error
