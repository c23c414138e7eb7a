import errno
import fcntl
import os
import subprocess
import sys
from collections import namedtuple

import pytest

from fl_lightning.errors import ConfigurationError
from fl_lightning.files import RoundLines, write_whole
from fl_lightning.replacing import StorageError, explained, remove_parts, replacing


def test_a_file_is_old_or_new(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "old")

    def torn() -> None:
        with replacing(path) as file:
            file.write(b"half of the n")
            assert path.read_text() == "old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        torn()
    assert path.read_text() == "old"
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_the_bytes_wanted_and_free(tmp_path, monkeypatch, number):
    path = tmp_path / "run.json"
    write_whole(path, "old")

    def full(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fl_lightning.replacing.os.fsync", full)
    usage = namedtuple("usage", ("total", "used", "free"))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(10**9, 10**9 - 1234, 1234))
    with pytest.raises(
        StorageError, match=r"no room for .*run\.json \(.*\): 2,000 bytes are wanted and 1,234 are free.*make room"
    ):
        write_whole(path, "x" * 2000)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["run.json"]


def test_lines_that_find_no_room(tmp_path, monkeypatch):
    lines = RoundLines(tmp_path / "metrics.jsonl", afresh=True)
    lines.path = tmp_path / "full"
    os.symlink("/dev/full", lines.path)
    with pytest.raises(StorageError, match=r"no room for .*full"):
        lines.add({"round": 1})


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(StorageError, match=r"none/file cannot be written: No such file or directory; make its folder"):
        write_whole(tmp_path / "none" / "file", "x")


def test_it_is_an_error_of_the_system_and_of_the_user(tmp_path):
    with pytest.raises(StorageError) as raised, explained(tmp_path):
        raise StorageError("already told")
    assert isinstance(raised.value, OSError)
    assert isinstance(raised.value, ConfigurationError)
    assert str(raised.value) == "already told"


def test_parts_of_processes_that_are_gone_are_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    (tmp_path / f".run.json.{gone.pid}.7.part").touch()
    (tmp_path / f".run.json.{os.getpid()}.7.part").touch()  # the number is another process's by now, as in a container
    (tmp_path / "mine.part").touch()
    with replacing(tmp_path / "run.json") as file:
        file.write(b"{}")
        remove_parts(tmp_path)
        (living,) = tmp_path.glob(".run.json.*.part")
        assert sorted(each.name for each in tmp_path.iterdir()) == [living.name, "mine.part"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mine.part", "run.json"]


def test_parts_where_there_are_no_locks_are_known_by_their_processes(tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    monkeypatch.setattr("fl_lightning.replacing.fcntl.flock", no_locks)
    (tmp_path / f".run.json.{gone.pid}.7.part").touch()
    (tmp_path / f".run.json.{os.getpid()}.7.part").touch()
    remove_parts(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [f".run.json.{os.getpid()}.7.part"]
    write_whole(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"


def test_a_part_that_is_taken_for_a_stray_is_made_again(tmp_path, monkeypatch):
    calls = []
    lock = fcntl.flock

    def removed_before_it_is_locked(file, operation):
        if not calls:
            (part,) = tmp_path.glob(".*.part")
            part.unlink()
        calls.append(operation)
        lock(file, operation)

    monkeypatch.setattr("fl_lightning.replacing.fcntl.flock", removed_before_it_is_locked)
    write_whole(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"
    assert len(calls) == 2
