"""A record that finds no room, is damaged, or loses its folder."""

import errno
import shutil

import lightning as L
import pytest
from test_run_record import changed, run

from fl_lightning import ConfigurationError, resuming
from fl_lightning.files import TRAINING_LOCK, take_lock
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


class DeletedAfter(L.Callback):
    """Somebody deletes the run's folder after a round."""

    def __init__(self, folder, round_number, then=lambda: None):
        self.folder, self.round_number, self.then = folder, round_number, then

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.global_step == self.round_number:
            shutil.rmtree(self.folder)
            self.then()


@pytest.mark.parametrize("every", [1, 10])
def test_a_folder_that_is_deleted_takes_nothing_along(tmp_path, caplog, every):
    whole, _ = run(tmp_path / "whole", check_val_every_n_epoch=every)
    folder = tmp_path / "run"
    record, _ = run(folder, callbacks=[DeletedAfter(folder, 2)], check_val_every_n_epoch=every)
    assert "was deleted while a run trained there; its record is written anew" in caplog.text
    assert {name: record[name] for name in ("state", "acc", "weights_sha256", "acc_last10_rounds")} == {
        name: whole[name] for name in ("state", "acc", "weights_sha256", "acc_last10_rounds")
    }
    for name in ("metrics.jsonl", "config.yaml"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (folder / "last.ckpt").exists()
    assert not (folder / "earlier").exists()


def test_a_folder_that_another_run_has_by_now_is_left_to_it(tmp_path):
    folder, held = tmp_path / "run", []

    def another() -> None:
        folder.mkdir()
        held.append(take_lock(folder / TRAINING_LOCK, 0.0))

    with pytest.raises(ConfigurationError, match=r"^another run is training in .*run; wait for its end, or give another"):
        run(folder, callbacks=[DeletedAfter(folder, 2, another)])
    held[0].close()
    assert [path.name for path in folder.iterdir()] == ["training.lock"]


def test_a_file_system_that_becomes_read_only_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    class ReadOnlyAfter(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.global_step == 3:
                monkeypatch.setattr("pathlib.Path.open", read_only)

    with pytest.raises(StorageError, match=r"^\S+metrics\.jsonl cannot be written: Read-only file system; make its folder"):
        run(tmp_path, callbacks=[ReadOnlyAfter()])
    monkeypatch.undo()
    assert resuming.whole(tmp_path / "last.ckpt") == 3
    assert unsealed(tmp_path / "run.json")["state"] == "running"
    record, _ = run(tmp_path, ckpt_path="last")
    assert record["state"] == "finished"
