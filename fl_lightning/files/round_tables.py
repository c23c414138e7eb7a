"""Rows of every round in a folder of Parquet files, whole after a kill at any moment, each round once.

A file is called after the first round that it was written for, and its rows count up to the first round of the next file. So a
file that has taken up the next one's rows, which a kill kept from being deleted, doubles nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_lightning.errors import ConfigurationError, in_one_line
from fl_lightning.files.replacing import remove_parts, replacing
from fl_lightning.files.run_files import own_file

if TYPE_CHECKING:
    import pyarrow

NAME = "from-round-{:07d}.parquet"

PATTERN = "from-round-*.parquet"

ROWS_AT_ONCE = 2**17
"""Rows that are in memory when files are put together, at least."""


class RoundTables:
    """Writes such a folder.

    Args:
        folder: made if it is not there.
        schema: of the rows, with `round` among its columns.
        rounds: how many are done: rows of later ones, which come again, are dropped.

    Raises:
        ConfigurationError: a file of that kind is damaged, or a link, or the folder is one.
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, schema: pyarrow.Schema, rounds: int) -> None:
        self.folder, self.schema = folder, schema
        own_folder(folder).mkdir(parents=True, exist_ok=True)
        remove_parts(folder)
        files = files_of(folder)
        for path in reversed(files):  # from the end, so that a kill leaves a beginning
            if first_round(path) >= rounds:
                path.unlink()
        if files := files_of(folder):
            kept = read_file(files[-1], rounds)
            if kept.num_rows < read_file(files[-1]).num_rows:
                self._write(files[-1], [kept])

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add the rows of further rounds, as one file."""
        import pyarrow

        if rows:
            self._write(self.folder / NAME.format(rows[0]["round"]), [pyarrow.Table.from_pylist(list(rows), self.schema)])

    def merge(self) -> None:
        """Make one file of all."""
        files = files_of(self.folder)
        if len(files) > 1:
            self._write(files[0], tables_of(self.folder))
            for path in files[1:]:
                path.unlink()

    def _write(self, path: Path, tables: Iterable[pyarrow.Table]) -> None:
        import pyarrow
        from pyarrow import parquet

        with replacing(own_file(path)) as file, parquet.ParquetWriter(file, self.schema) as writer:
            waiting: list[pyarrow.Table] = []
            for table in tables:
                waiting.append(table)
                if sum(t.num_rows for t in waiting) >= ROWS_AT_ONCE:
                    writer.write_table(pyarrow.concat_tables(waiting))
                    waiting = []
            if waiting:
                writer.write_table(pyarrow.concat_tables(waiting))


def read_round_tables(folder: Path) -> pyarrow.Table | None:
    """All rows of such a folder, round by round; None where there is no file.

    Raises:
        ConfigurationError: a file is damaged, or a link.
    """
    import pyarrow

    tables = list(tables_of(own_folder(folder)))
    return pyarrow.concat_tables(tables) if tables else None


def own_folder(folder: Path) -> Path:
    """The folder, after seeing that it is no link: what lies elsewhere is not the run's."""
    if folder.is_symlink():
        raise ConfigurationError(f"{folder} is a link; a run's files lie in its folder: put them there")
    return folder


def tables_of(folder: Path) -> Iterator[pyarrow.Table]:
    """The rows of each file that count, in order."""
    files = files_of(folder)
    for path, following in pairwise([*files, None]):
        assert path is not None
        yield read_file(path, None if following is None else first_round(following))


def files_of(folder: Path) -> list[Path]:
    """The files, by their first round."""
    return sorted(folder.glob(PATTERN), key=first_round)


def first_round(path: Path) -> int:
    """The round that a file is called after."""
    number = path.stem.removeprefix("from-round-")
    if not number.isdigit():
        raise ConfigurationError(f"{path} is no file of this folder; move it away")
    return int(number)


def read_file(path: Path, before: int | None = None) -> pyarrow.Table:
    """A file's rows, or those of rounds before one."""
    import pyarrow
    import pyarrow.compute
    from pyarrow import parquet

    own_file(path)
    try:
        table = parquet.ParquetFile(path).read()
        return table if before is None else table.filter(pyarrow.compute.field("round") < before)
    except (OSError, ValueError, KeyError, MemoryError, pyarrow.ArrowException) as error:
        raise ConfigurationError(
            f"{path} is damaged ({in_one_line(error)}); put a copy of it back, or delete it: the record lacks its rounds then"
        ) from error
