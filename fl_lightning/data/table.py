"""Data sets of Hugging Face's `datasets`, read into memory by columns, as reading one row takes a hundred times as long."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from fl_lightning.data.sample_form import Key
from fl_lightning.data.targets import Stated, read_classes
from fl_lightning.errors import ConfigurationError, enumerated

if TYPE_CHECKING:
    import pyarrow

TENSORS = (None, "torch", "numpy")
"""Formats whose rows can be joined into batches of tensors; None is one of lists."""


AT_ONCE = 2**14
"""Rows that are read at a time."""


class Rows(Dataset[Any]):
    """Columns in memory, of which a sample is a row as a mapping.

    Args:
        columns: tensors (n, ...) or lists of n entries, by name; at least one.

    Example:
        >>> Rows({"x": torch.zeros(2, 3), "label": torch.tensor([0, 1])})[1]
        {'x': tensor([0., 0., 0.]), 'label': tensor(1)}
    """

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: column[index] for name, column in self.columns.items()}


def is_table(dataset: Any) -> bool:
    """Whether this is such a data set, which it cannot be as long as nobody has imported the library."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(dataset, library.Dataset)


def check_format(table: Any, whose: str) -> None:
    """Raise `ConfigurationError` if rows come in a format of which no batches of tensors can be made."""
    kind = table.format["type"]
    if kind not in (*TENSORS, "custom"):
        raise ConfigurationError(
            f"the {whose} data are in the format {kind!r}, whose rows cannot be joined into batches; give .with_format('torch')"
        )


def column_of(table: Any, name: str, field: str) -> list[Any]:
    """A column that names the group of each sample; `field`: the argument that asks for it, for messages.

    Raises:
        ConfigurationError: if this is no such data set, or has no such column.
    """
    if not is_table(table):
        raise ConfigurationError(
            f"{field} is {name!r}, the name of a column, but the data are {type(table).__name__}, no data set of Hugging "
            "Face's; give the group of each sample"
        )
    if name not in table.column_names:
        raise ConfigurationError(f"{field} is {name!r}, but the data have the columns {enumerated(table.column_names)}")
    return table.with_format(None).select_columns([name])[:][name]


def stated_by(table: Any, column: Key, whose: str) -> Stated:
    """The classes in a column; those of a ClassLabel have its names.

    Raises:
        ConfigurationError: if an entry is no class.
    """
    import pyarrow

    held = arrow_column(table, str(column))
    whole = pyarrow.types.is_integer(held.type) and not held.null_count
    values = held.to_numpy().copy() if whole else table.with_format(None).select_columns([column])[:][column]
    names = getattr(table.features[column], "names", None)
    if names is not None and -1 in values:
        raise ConfigurationError(
            f"the class of sample {list(values).index(-1)} in the {whose} data is -1, which stands for a class that is not "
            "told, as in test sets of competitions; take another split"
        )
    stated = read_classes(values, f"the {whose} data")
    return Stated(stated.kind, stated.numbers, tuple(names or stated.names), stated.width)


def as_rows(table: Any, limit: int, whose: str) -> Any:
    """The table in memory, if it holds numbers and texts alone and takes no more than `limit` bytes, else as it is.

    Raises:
        ConfigurationError: if a column has gaps.
    """
    if not all(map(_is_plain, (table.features[name] for name in table.format["columns"]))):
        return table
    check_gaps(table, whose)
    if bytes_of(table) > limit:
        return table
    return Rows(read_columns(table.with_format("torch") if table.format["type"] is None else table))


def check_gaps(table: Any, whose: str) -> None:
    """Raise `ConfigurationError` if an entry of a column that is read is missing."""
    for name in table.format["columns"]:
        if not table.data.column(name).null_count:  # also of rows that are not selected; known without reading them
            continue
        column = arrow_column(table, name)
        if gaps := column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise ConfigurationError(
                f"the column {name!r} of the {whose} data is empty in {gaps:,} of {len(column):,} rows, first in row {row}, "
                "counted from 0; fill it, leave these rows out (.filter), or the column (.remove_columns)"
            )


def arrow_column(table: Any, name: str) -> pyarrow.ChunkedArray:
    """One column in memory. Of rows in another order than the file's, each is an object while it is read: some at a time."""
    import pyarrow

    rows = table.select_columns([name]).with_format("arrow")
    pieces = [rows[start : start + AT_ONCE].column(name).combine_chunks() for start in range(0, len(rows), AT_ONCE)]
    return pyarrow.chunked_array(pieces)


def bytes_of(table: Any) -> int:
    """About how much the rows take in Arrow, without reading them: a selection's share of the file."""
    whole = sum(table.data.column(name).nbytes for name in table.format["columns"])
    return whole * len(table) // max(1, table.data.num_rows)


def read_columns(table: Any) -> dict[str, Any]:
    """All rows as columns, some at a time, so that only their results are held twice for a moment: tensors (n, ...), or lists.

    A slice of all rows would take three times what it gives.
    """
    pieces = (table[start : start + AT_ONCE] for start in range(0, len(table), AT_ONCE))
    columns: dict[str, Any] = {}
    for start, piece in zip(range(0, len(table), AT_ONCE), pieces, strict=True):
        for name, values in piece.items():
            held = columns.setdefault(name, room(values, len(table)))
            if not fits(held, values):
                held = columns[name] = list(held[:start])  # of several shapes
            if isinstance(held, list):
                held.extend(values)
            else:
                held[start : start + len(values)] = values
    return columns


def room(values: Any, n: int) -> Any:
    """For a column of n rows like these: a tensor or array (n, ...), else an empty list."""
    if isinstance(values, Tensor):
        return values.new_empty((n, *values.shape[1:]))
    if isinstance(values, np.ndarray) and values.dtype != object:
        return np.empty((n, *values.shape[1:]), dtype=values.dtype)
    return []


def fits(held: Any, values: Any) -> bool:
    """Whether values of some rows can stand where those before them do."""
    if isinstance(held, list):
        return True
    return type(values) is type(held) and values.dtype == held.dtype and values.shape[1:] == held.shape[1:]


def _is_plain(feature: Any) -> bool:
    """Whether a column holds numbers, texts, or arrays or lists of numbers."""
    if type(feature).__name__.startswith("Array"):
        return True
    while hasattr(feature, "feature"):  # of a list
        feature = feature.feature
        if getattr(feature, "dtype", None) in ("string", "large_string"):
            return False
    dtype = str(getattr(feature, "dtype", ""))
    return hasattr(feature, "names") or dtype.startswith(("int", "uint", "float", "bool", "string", "large_string"))


def uneven(rows: Rows) -> tuple[str, int] | None:
    """The first column whose entries differ in shape from its first, and the row where they do."""
    for name, column in rows.columns.items():
        if isinstance(column, (list, np.ndarray)) and len(column) and isinstance(column[0], (Tensor, np.ndarray)):
            for row, entry in enumerate(column):
                if entry.shape != column[0].shape:
                    return name, row
    return None
