"""A folder of Parquet files with the rows of every round."""

from pathlib import Path

import pyarrow as pa
import pytest

from fl_lightning import ConfigurationError
from fl_lightning.files import round_tables
from fl_lightning.files.replacing import StorageError
from fl_lightning.files.round_tables import RoundTables, files_of, first_round, read_round_tables

SCHEMA = pa.schema([("round", pa.int64()), ("client", pa.int64())])


def rows(first: int, stop: int) -> list[dict[str, int]]:
    """Two clients a round."""
    return [{"round": t, "client": c} for t in range(first, stop) for c in (t % 3, 5)]


def read(folder: Path) -> list[dict[str, int]]:
    table = read_round_tables(folder)
    return [] if table is None else table.to_pylist()


def written(folder: Path, *stops: int) -> RoundTables:
    """A file up to each of these rounds."""
    tables, first = RoundTables(folder, SCHEMA, 0), 0
    for stop in stops:
        tables.add(rows(first, stop))
        first = stop
    return tables


def test_rows_come_back_in_order(tmp_path):
    tables = written(tmp_path / "clients", 2, 3, 7)
    tables.add([])
    assert read(tmp_path / "clients") == rows(0, 7)
    assert [first_round(path) for path in files_of(tmp_path / "clients")] == [0, 2, 3]
    tables.merge()
    tables.merge()
    assert read(tmp_path / "clients") == rows(0, 7)
    assert len(list((tmp_path / "clients").iterdir())) == 1
    assert read(tmp_path / "nothing") == []


@pytest.mark.parametrize("rounds", [0, 1, 2, 4, 5, 7, 9])
@pytest.mark.parametrize("merged", [False, True])
def test_rounds_that_are_done_again_are_dropped(tmp_path, rounds, merged):
    tables = written(tmp_path, 2, 5, 7)
    if merged:
        tables.merge()
    again = RoundTables(tmp_path, SCHEMA, rounds)
    assert read(tmp_path) == rows(0, min(rounds, 7))
    again.add(rows(rounds, 10))
    assert read(tmp_path) == rows(0, min(rounds, 7)) + rows(rounds, 10)


def test_a_kill_while_files_are_put_together_doubles_nothing(tmp_path, monkeypatch):
    tables = written(tmp_path, 2, 5, 7)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tables.merge()
    assert len(files_of(tmp_path)) == 3  # the first of which has all rows
    assert read(tmp_path) == rows(0, 7)
    RoundTables(tmp_path, SCHEMA, 3)
    assert read(tmp_path) == rows(0, 3)
    RoundTables(tmp_path, SCHEMA, 1)
    assert read(tmp_path) == rows(0, 1)


def test_a_kill_while_a_file_is_written_leaves_the_others(tmp_path, monkeypatch):
    tables = written(tmp_path, 2)
    part = tmp_path / f".{round_tables.NAME.format(2)}.999999999.1.part"  # of a process that is gone
    part.write_bytes(b"PAR1 half of a file")
    assert read(tmp_path) == rows(0, 2)
    RoundTables(tmp_path, SCHEMA, 2)
    assert not part.exists()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match="there is no room for"):
        tables.add(rows(2, 4))
    assert read(tmp_path) == rows(0, 2)
    assert len(list(tmp_path.iterdir())) == 1


def test_many_rows_are_put_together_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(round_tables, "ROWS_AT_ONCE", 5)
    written(tmp_path, *range(1, 9)).merge()
    assert read(tmp_path) == rows(0, 8)


def test_damage_and_links_are_named(tmp_path):
    written(tmp_path / "clients", 2, 4)
    second = files_of(tmp_path / "clients")[1]
    whole = second.read_bytes()
    second.write_bytes(whole[:-20])
    with pytest.raises(ConfigurationError, match=r"from-round-0000002\.parquet is damaged .*put a copy of it back"):
        read(tmp_path / "clients")
    second.unlink()
    (tmp_path / "elsewhere").write_bytes(whole)
    second.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="is a link to"):
        read(tmp_path / "clients")
    (tmp_path / "link").symlink_to(tmp_path / "clients")
    with pytest.raises(ConfigurationError, match="link is a link"):
        read(tmp_path / "link")
    second.unlink()
    (tmp_path / "clients" / "from-round-x.parquet").write_bytes(whole)
    with pytest.raises(ConfigurationError, match="is no file of this folder"):
        read(tmp_path / "clients")
