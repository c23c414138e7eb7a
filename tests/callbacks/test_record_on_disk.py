"""A record that finds no room, is damaged, or loses its folder."""

import errno

import pytest
from test_run_record import changed, run

from fl_lightning.replacing import StorageError
from fl_lightning.sealed import DamagedError, altered, unsealed


def test_a_run_that_finds_no_room_for_its_record_leaves_what_is_there(tmp_path, monkeypatch):
    run(tmp_path, rounds=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fl_lightning.replacing.os.fsync", full)
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(StorageError, match=r"^there is no room for .*: make room and start again") as raised:
            run(folder, changed(seed_everything=3), rounds=1)
        assert "\n" not in str(raised.value)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["training.lock"]
    (tmp_path / "new" / "training.lock").unlink()
    (tmp_path / "new").rmdir()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_record_and_its_settings_tell_whether_they_are_what_was_written(tmp_path):
    record, _ = run(tmp_path, rounds=1)
    assert "sha256" in record
    assert unsealed(tmp_path / "run.json")["acc"] == record["acc"]
    assert not altered(tmp_path / "config.yaml")
    text = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(text.replace('"rounds": 1', '"rounds": 3'))
    with pytest.raises(DamagedError):
        unsealed(tmp_path / "run.json")
    run(tmp_path, rounds=1)  # of a damaged record nothing is known but that it is another run's
    assert (tmp_path / "earlier" / "1" / "run.json").exists()
