"""Tables from files of the user's own: CSV, JSON or Parquet, and what their columns hold."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fl_lightning.data.parquet import read_file, readable
from fl_lightning.errors import ConfigurationError, enumerated

if TYPE_CHECKING:
    import pyarrow

GAPS = ("", "na", "n/a", "#n/a", "nan", "-nan", "null")
"""Texts that stand for a missing entry, in small letters."""

MOST_BYTES = 2**31 - 1
"""That pyarrow parses as one piece."""


def read_table(path: str | Path) -> pyarrow.Table:
    """A CSV file with a header, a JSON or a Parquet file, as a table without columns of the same name."""
    path = Path(path)
    if not path.is_file():
        raise ConfigurationError(f"data.path {path} is no file; give a CSV file with a header, a JSON or a Parquet file")
    if path.name.endswith((".csv", ".csv.gz")):
        table = read_csv(path)
    elif path.suffix == ".parquet":
        table = read_file(path)
    elif path.suffix in (".json", ".jsonl"):
        table = read_json(path)
    else:
        raise ConfigurationError(f"data.path {path} must end in .csv, .csv.gz, .json, .jsonl or .parquet")
    names = table.column_names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"{path} has several columns of the name {enumerated(twice)}; rename them")
    if not len(table):
        raise ConfigurationError(f"{path} has columns but no row")
    return table


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


def read_json(path: Path) -> pyarrow.Table:
    """A JSON file: a list of objects, or an object per line; a field that one of them lacks is empty there."""
    import pyarrow

    with readable(path):
        text = path.read_text(encoding="utf-8")
        if text.lstrip()[:1] == "[":
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("its entries are no objects with named fields")
        names = dict.fromkeys(name for row in rows for name in row)
        return pyarrow.table({name: [row.get(name) for row in rows] for name in names})


def numbers(table: pyarrow.Table, name: str) -> np.ndarray:
    """A column as (n,) float32; `ConfigurationError` unless all its entries are finite numbers."""
    import pyarrow

    column = table.column(name)
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
