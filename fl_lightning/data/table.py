"""Data sets of Hugging Face's `datasets`, read into memory by columns, as reading one row takes a hundred times as long."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from fl_lightning.data.sample_form import Key
from fl_lightning.data.targets import Stated, read_classes
from fl_lightning.errors import ConfigurationError, enumerated

TENSORS = (None, "torch", "numpy")
"""Formats whose rows can be joined into batches of tensors; None is one of lists."""


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
    values = table.with_format(None).select_columns([column])[:][column]
    names = getattr(table.features[column], "names", None)
    if names is not None and -1 in values:
        raise ConfigurationError(
            f"the class of sample {values.index(-1)} in the {whose} data is -1, which stands for a class that is not told, as "
            "in test sets of competitions; take another split"
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
    arrow = table.with_format("arrow", columns=table.format["columns"])[:]
    for name in arrow.column_names:
        if gaps := arrow.column(name).null_count:
            row = arrow.column(name).is_null().to_pylist().index(True)
            raise ConfigurationError(
                f"the column {name!r} of the {whose} data is empty in {gaps:,} of {len(arrow):,} rows, first in row {row}, "
                "counted from 0; fill it, leave these rows out (.filter), or the column (.remove_columns)"
            )
    if arrow.nbytes > limit:
        return table
    given = table.with_format("torch") if table.format["type"] is None else table
    return Rows(dict(given[:]))


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
