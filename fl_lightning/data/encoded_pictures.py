"""Pictures that a table holds as JPEG or PNG files, as data sets on the Hugging Face Hub do: decoded into bytes of pixels."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fl_lightning.data.parquet import column_names, parquet_files, read_file
from fl_lightning.errors import ConfigurationError, enumerated, in_one_line

if TYPE_CHECKING:
    import pyarrow

MODES = {1: "L", 3: "RGB"}
"""PIL's names of kinds of pictures, by their channels."""


def read_pictures(
    folder: str | Path, split: str, *, column: str, shape: tuple[int, int, int], subfolder: str = "plain_text"
) -> tuple[Tensor, Tensor]:
    """Pictures and classes of one split from Parquet files in `folder`.

    Args:
        folder: holds `<split>.parquet`, `<split>-*.parquet` or `<subfolder>/<split>-*.parquet`.
        split: "train" or "test".
        column: the pictures' name; that of classes is `label`.
        shape: channels, rows and columns of a picture.
        subfolder: of the Hub's repository.

    Returns:
        Pictures (n, channels, rows, columns) uint8 and classes (n,) int64.

    Raises:
        ConfigurationError: if there are no such files or columns, or a file or a picture in it is damaged.
    """
    parts = [
        decode(table, name, column=column, shape=shape)
        for table, name in read_tables(folder, split, [column, "label"], subfolder)
    ]
    pictures, targets = zip(*parts, strict=True)
    return torch.cat(pictures), torch.cat(targets)


def read_tables(
    folder: str | Path, split: str, columns: Sequence[str], subfolder: str = "plain_text"
) -> Iterator[tuple[pyarrow.Table, str]]:
    """Some columns of the Parquet files of one split, file by file, as types may differ between them, with the files' names.

    Raises:
        ConfigurationError: if there are no such files or columns, or a file is damaged.
    """
    for file in parquet_files(folder, split, subfolder):
        names = column_names(file)
        if not set(columns) <= set(names):
            raise ConfigurationError(
                f"{file} has the columns {enumerated(names)}; it must have {enumerated(columns)}, as on the Hub"
            )
        yield read_file(file, columns), str(file)


def decode(
    table: pyarrow.Table, name: str, *, column: str, shape: tuple[int, int, int], label: str = "label"
) -> tuple[Tensor, Tensor]:
    """Decode a table of encoded pictures.

    Args:
        table: a column of structs with the JPEG or PNG `bytes` of a picture, and one of whole numbers.
        name: where the table comes from, for error messages.
        column: the pictures' name.
        shape: channels (1 or 3), rows and columns; pictures of other colours are converted.
        label: the classes' name.

    Returns:
        Pictures (n, channels, rows, columns) uint8 and classes (n,) int64.
    """
    channels, rows, columns = shape
    pictures = np.empty((len(table), rows, columns, channels), dtype=np.uint8)
    for i, entry in enumerate(table.column(column).to_pylist()):
        encoded = entry.get("bytes") if isinstance(entry, dict) else entry
        if not isinstance(encoded, bytes):
            raise ConfigurationError(f"{name}: {column} of row {i} holds no image bytes; embed the images in the Parquet file")
        try:
            with Image.open(io.BytesIO(encoded)) as image:
                if image.size != (columns, rows):
                    raise ConfigurationError(
                        f"{name}: the image of row {i} has size {image.size}; it must be {(columns, rows)}"
                    )
                mode = MODES[channels]
                pictures[i] = np.asarray(image if image.mode == mode else image.convert(mode)).reshape(rows, columns, channels)
        except ConfigurationError:
            raise
        except Exception as error:  # decoders of damaged images raise what they like
            raise ConfigurationError(
                f"{name}: the image of row {i} cannot be decoded: {in_one_line(error)}; fetch it again or give another path"
            ) from error
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), whole_numbers(table, name, label)


def whole_numbers(table: pyarrow.Table, name: str, column: str) -> Tensor:
    """A column of classes, or of groups of them, as (n,) int64; `name` is where the table comes from, for error messages."""
    found = table.column(column).to_pylist()
    wrong = next((i for i, value in enumerate(found) if not isinstance(value, int) or abs(value) >= 2**63), None)
    if wrong is not None:
        raise ConfigurationError(f"{name}: {column} of row {wrong} is {found[wrong]!r}; it must be a whole number of 64 bits")
    return torch.tensor(found, dtype=torch.int64)


def label_names(table: pyarrow.Table, column: str) -> tuple[str, ...]:
    """What the classes of a column are called, in order, where a data set of Hugging Face's says so in its table."""
    try:
        written = json.loads((table.schema.metadata or {})[b"huggingface"])
        names = written["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):  # tables of others
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def hub_table(hub_name: str, split: str) -> pyarrow.Table:
    """One split from the Hugging Face Hub or its local cache, with pictures still encoded."""
    import datasets  # takes seconds to import, and a local copy of the data does not need it

    try:
        data = datasets.load_dataset(hub_name, split=split)
    except OSError as error:
        raise ConfigurationError(
            f"data.path is not set and {hub_name} cannot be fetched from the Hugging Face Hub ({error}); check the "
            "network, or set data.path to a folder with its Parquet files"
        ) from error
    return data.with_format("arrow")[:]
