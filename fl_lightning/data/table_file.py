"""Tables from files of the user's own: CSV, JSON or Parquet, and what their columns hold."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_lightning.data.parquet import open_file, read_columns, readable
from fl_lightning.errors import ConfigurationError, enumerated, in_one_line

if TYPE_CHECKING:
    import pyarrow

GAPS = ("", "na", "n/a", "#n/a", "nan", "-nan", "null")
"""Texts that stand for a missing entry, in small letters."""

HALF_A_STEP = 2.0**-24
"""By which a number is changed at most as float32, as a share of itself."""

FINEST = 0.01
"""Of the range of a column's numbers: what is changed by less is no loss."""

MOST_BYTES = 2**31 - 1
"""That pyarrow parses as one piece."""


class TableFile:
    """A CSV file with a header, a JSON or a Parquet file: columns by name, no two of the same.

    Parquet is read column by column, so that what is asked for is in memory alone; CSV and JSON, which must be parsed as a
    whole, are held.

    Args:
        path: of the file.

    Raises:
        ConfigurationError: it is none, or damaged, or has no rows.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.is_file():
            raise ConfigurationError(f"data.path {path} is no file; give a CSV file with a header, a JSON or a Parquet file")
        self._path, self._held, self._file = path, None, None
        if path.name.endswith((".csv", ".csv.gz", ".json", ".jsonl")):
            self._held = read_json(path) if path.suffix in (".json", ".jsonl") else read_csv(path)
            self.names, self.num_rows = self._held.column_names, len(self._held)
        elif path.suffix == ".parquet":
            self._file = open_file(path)
            self.names, self.num_rows = self._file.schema_arrow.names, self._file.metadata.num_rows
        else:
            raise ConfigurationError(f"data.path {path} must end in .csv, .csv.gz, .json, .jsonl or .parquet")
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ConfigurationError(f"{path} has several columns of the name {enumerated(twice)}; rename them")
        if not self.num_rows:
            raise ConfigurationError(f"{path} has columns but no row")

    def columns(self, names: Sequence[str]) -> pyarrow.Table:
        """Some of its columns; texts are valid UTF-8."""
        if self._held is not None:
            return self._held.select(names)
        assert self._file is not None
        return written_out(read_columns(self._file, self._path, names))

    def column(self, name: str) -> pyarrow.ChunkedArray:
        """One of them."""
        return self.columns([name]).column(name)


def read_csv(path: Path) -> pyarrow.Table:
    """A CSV file with a header, in which texts may hold line breaks and be of any length.

    It is parsed in one piece: where pieces end within a text, or a column turns from whole numbers to fractions after the
    first, a valid file would be taken for a damaged one.
    """
    import pyarrow.csv  # here, as most runs do not need it and it is slow to import

    with readable(path):
        try:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (EOFError, zlib.error) as error:
            raise OSError(f"damaged: {error}") from error
        table = pyarrow.csv.read_csv(
            pyarrow.BufferReader(data),
            read_options=pyarrow.csv.ReadOptions(block_size=min(len(data) + 1, MOST_BYTES)),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        )
        table.column_names  # noqa: B018  those of other encodings than UTF-8 fail only here
        return table


def written_out(table: pyarrow.Table) -> pyarrow.Table:
    """A table whose columns hold values themselves, where pandas writes those of a category as numbers in a list of values."""
    import pyarrow

    of = pyarrow.types
    values = [field.type.value_type if of.is_dictionary(field.type) else field.type for field in table.schema]
    return table.cast(pyarrow.schema(list(zip(table.column_names, values, strict=True))))


def read_json(path: Path) -> pyarrow.Table:
    """A JSON file: a list of objects, or an object per line; a field that one of them lacks is empty there."""
    import pyarrow

    with readable(path):
        text = path.read_text(encoding="utf-8-sig")
        try:
            if text.lstrip()[:1] == "[":
                rows = json.loads(text, object_pairs_hook=without_twins)
            else:  # texts within a line may hold what else Python takes for its end
                rows = [json.loads(line, object_pairs_hook=without_twins) for line in text.split("\n") if line.strip()]
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("its entries are no objects with named fields")
        names = dict.fromkeys(name for row in rows for name in row)
        return pyarrow.table({name: of_one_type(name, [row.get(name) for row in rows]) for name in names})


def without_twins(fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields; of a name that stands twice the first would be lost."""
    found = dict(fields)
    if len(found) < len(fields):
        names = [name for name, _ in fields]
        raise ValueError(f"an entry has several fields of the name {enumerated(n for n in found if names.count(n) > 1)}")
    return found


def of_one_type(name: str, values: Sequence[Any]) -> pyarrow.Array:
    """A field of all objects as a column; `ValueError` if its values are not all of one type, or no 64 bits hold one."""
    import pyarrow

    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError, UnicodeError) as error:
        raise ValueError(
            f"the values of {name!r} are not of one type, or too large for 64 bits: {in_one_line(error)}"
        ) from error


def numbers(column: pyarrow.ChunkedArray, name: str) -> np.ndarray:
    """The column of that name as (n,) float32; `ConfigurationError` unless all its entries are finite numbers."""
    import pyarrow

    kind = column.type
    remedy = "correct or remove these rows, or name the column in data.drop_columns"
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        texts = [(row, text) for row, text in enumerate(column.to_pylist()) if not is_number(text)]
        row, text = texts[0] if texts else (0, column[0].as_py())
        raise ConfigurationError(
            f"the column {name!r} holds text in {len(texts) or len(column):,} of {len(column):,} rows, first {text!r} in row "
            f"{row}, counted from 0; {remedy}"
        )
    if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind)):
        raise ConfigurationError(
            f"the column {name!r} is of type {kind}, not a number, in all of {len(column):,} rows; convert it, or name it in "
            "data.drop_columns"
        )
    values = column.cast(pyarrow.float32(), safe=False).to_numpy()  # empty entries become NaN
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise ConfigurationError(
            f"the column {name!r} holds no finite number in {len(wrong):,} of {len(column):,} rows (empty, NaN, infinite, or "
            f"too large for float32), first in row {wrong[0]}, counted from 0; {remedy}"
        )
    if np.abs(values).max() * HALF_A_STEP > FINEST * np.ptp(values):
        exact = column.cast(pyarrow.float64(), safe=False).to_numpy()
        before, after = (len(np.unique(each)) for each in (exact, values))
        if after < before:
            raise ConfigurationError(
                f"the column {name!r} holds {before:,} different numbers, of which float32, in which tables are held, leaves "
                f"{after:,}, as all are so near {values[0]:.6g}; subtract that from the column, or name it in data.drop_columns"
            )
    return values


def is_gap(label: object) -> bool:
    """Whether a label says nothing: it is missing, NaN, or a text by which tables stand for that."""
    return label is None or label != label or (isinstance(label, str) and label.strip().lower() in GAPS)


def is_number(text: str | None) -> bool:
    """Whether a text stands for a number."""
    try:
        float(text or "")
    except ValueError:
        return False
    return True
