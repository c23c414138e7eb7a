"""Files of Sentiment140, with users or without: read by split, checked, and without neutral tweets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fl_lightning.data.parquet import column_names, parquet_files, read_file
from fl_lightning.errors import ConfigurationError, enumerated

if TYPE_CHECKING:
    import pyarrow

HUB_NAME = "stanfordnlp/sentiment140"
"""Where the data set lives on the Hugging Face Hub."""

HUB_REVISION = "refs/convert/parquet"
"""The Hub's own Parquet copy of it: the original comes as a script, which the `datasets` library no longer runs."""

NEGATIVE, POSITIVE = 0, 1
COLUMNS = ("text", "user", "sentiment")
IN_TEST = "in_test"
"""A column, true where a tweet without a user is one of the test set, word for word."""

SENTIMENTS = {"negative": 0, "neutral": 2, "positive": 4}
"""What the column `sentiment` may say."""


def read_tweets(path: str | None, splits: Sequence[str] = ("train", "test")) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All tweets of some splits but the neutral ones.

    Args:
        path: the folder of the Parquet files, or None for the Hub.
        splits: which, one after the other.

    Returns:
        Texts (n,) str, users (n,) int64 from 0, and classes (n,) int64.
    """
    tweets = read_splits(path, splits, COLUMNS)
    texts = np.array(tweets.column("text").to_pylist(), dtype=object)
    users = tweets.column("user").combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    return texts, users, classes(tweets)


def read_texts(path: str | None, split: str) -> pyarrow.Table:
    """The tweets of one split but the neutral ones, users or not.

    Returns:
        The columns `text`, `sentiment` and, where all files of the split have it, `in_test`.
    """
    columns = ("text", "sentiment")
    if path is not None and all(IN_TEST in column_names(file) for file in parquet_files(path, split)):
        columns = (*columns, IN_TEST)
    return read_splits(path, (split,), columns)


def unlike(tweets: pyarrow.Table, test: pyarrow.Table) -> np.ndarray:
    """(n,) bool: whose text, letter case aside, is that of no test tweet, and which a column `in_test` does not mark either."""
    from pyarrow.compute import SetLookupOptions, call_function

    known = call_function("is_in", [lower_case(tweets)], SetLookupOptions(value_set=lower_case(test).combine_chunks()))
    marked = tweets.column(IN_TEST).to_numpy() if IN_TEST in tweets.column_names else False
    return ~(known.to_numpy() | marked)


def occurring_once(tweets: pyarrow.Table) -> np.ndarray:
    """(m,) int64, ascending: the positions of tweets whose text, letter case aside, no other one has."""
    texts = lower_case(tweets).combine_chunks().dictionary_encode().indices.to_numpy()
    return np.flatnonzero(np.bincount(texts)[texts] == 1)


def lower_case(tweets: pyarrow.Table) -> pyarrow.ChunkedArray:
    """(n,) their texts."""
    from pyarrow.compute import call_function

    return call_function("utf8_lower", [tweets.column("text")])


def read_splits(path: str | None, splits: Sequence[str], columns: Sequence[str]) -> pyarrow.Table:
    """Columns of some splits, one after the other, without neutral tweets."""
    import pyarrow  # here, as most runs do not need it and it is slow to import

    tables = []
    for split in splits:
        if path is None:
            tables.append(checked(hub_table(split), f"{HUB_NAME}, split {split}", columns))
        else:
            tables += [read_columns(file, columns) for file in parquet_files(path, split)]
    tweets = pyarrow.concat_tables(tables)
    return tweets.filter(pyarrow.array(tweets.column("sentiment").to_numpy() != SENTIMENTS["neutral"]))


def classes(tweets: pyarrow.Table) -> np.ndarray:
    """(n,) int64, of tweets of which none is neutral."""
    return np.where(tweets.column("sentiment").to_numpy() == SENTIMENTS["positive"], POSITIVE, NEGATIVE)


def read_columns(file: Path, columns: Sequence[str]) -> pyarrow.Table:
    """Columns of a Parquet file, checked; raises `ConfigurationError` if the file or one of them is not as it should be."""
    return checked(read_file(file), str(file), columns)


def checked(table: pyarrow.Table, name: str, columns: Sequence[str]) -> pyarrow.Table:
    """The columns alone, `sentiment` as int64, `in_test` as bool and others as strings.

    Raises:
        ConfigurationError: if a column or an entry is missing, of another type, or a sentiment is not 0, 2 or 4.
    """
    import pyarrow

    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise ConfigurationError(
            f"{name} has the columns {enumerated(table.column_names)}, but not {' and '.join(missing)}; give files "
            f"with the columns {', '.join(columns)}, as in {HUB_NAME} on the Hub"
            f"{', or set data.by_user: false for tweets without users' if missing == ['user'] else ''}"
        )
    table = table.select(list(columns))
    kinds = {"sentiment": pyarrow.int64(), IN_TEST: pyarrow.bool_()}
    wanted = [(column, kinds.get(column, pyarrow.string())) for column in columns]
    for column, kind in wanted:
        found = table.schema.field(column).type
        texts = str(found) in ("string", "large_string")
        fits = pyarrow.types.is_integer(found) if column == "sentiment" else found == kind if column in kinds else texts
        if not fits:
            raise ConfigurationError(f"{name}: the column {column} has type {found}; it must be {kind}; convert it")
        if table.column(column).null_count:
            row = table.column(column).is_null().to_pylist().index(True)
            raise ConfigurationError(f"{name}: {column} of row {row} is missing; remove that row or give another path")
    if "sentiment" in columns:
        others = sorted(set(table.column("sentiment").unique().to_pylist()) - set(SENTIMENTS.values()))
        if others:
            raise ConfigurationError(
                f"{name}: the column sentiment holds {others[:5]}; it may hold 0 (negative), 2 (neutral) and 4 (positive); "
                "convert it or give another path"
            )
    return table.cast(pyarrow.schema(wanted))


def hub_table(split: str) -> pyarrow.Table:
    """One split from the Hub or its local cache."""
    import datasets  # takes seconds to import, and a local copy of the data does not need it

    try:
        data = datasets.load_dataset(HUB_NAME, revision=HUB_REVISION, split=split)
    except OSError as error:
        raise ConfigurationError(
            f"data.path is not set and {HUB_NAME} cannot be fetched from the Hugging Face Hub ({error}); check the "
            "network, or set data.path to a folder with train.parquet and test.parquet"
        ) from error
    return data.with_format("arrow")[:]
