import errno
import resource
import zipfile
from pathlib import Path

import pytest
import torch

from fl_lightning.checkpoints import checkpoint_files
from fl_lightning.checkpoints.checkpoint_files import LENGTH, DamagedError, Stamp, check, save, size_of
from fl_lightning.files.replacing import PART, StorageError

CONTENT = {"weights": torch.arange(300.0), "bias": torch.zeros(1), "epoch": 3, "text": "x"}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "some.ckpt"


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_what_is_written_is_read_and_known_by_its_round(path):
    stamp = save(CONTENT, path, 12)
    assert check(path) == stamp == Stamp(12, stamp.sha256)
    assert size_of(CONTENT) == path.stat().st_size
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_any_program_that_reads_torchs_files_reads_it(path):
    save(CONTENT, path, 12)
    for mmap in (False, True):
        assert torch.equal(torch.load(path, mmap=mmap, weights_only=True)["weights"], CONTENT["weights"])
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert file.comment.startswith(b"fl_lightning round 000000000000000012 sha256 ")


def test_every_flipped_bit_is_noticed(path):
    save(CONTENT, path, 12)
    content = path.read_bytes()
    last = range(8 * (len(content) - LENGTH - 22), 8 * len(content))  # directory's end, comment, digest
    for bit in [*range(0, last.start, 101), *last]:
        path.write_bytes(flip(content, bit))
        with pytest.raises(DamagedError, match=r"some\.ckpt"):
            check(path)


def test_every_shorter_file_is_noticed(path):
    save(CONTENT, path, 12)
    content = path.read_bytes()
    for size in [*range(0, len(content), 37), len(content) - LENGTH, len(content) - 64, len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(DamagedError, match=r"some\.ckpt cannot be read: it is damaged or no checkpoint"):
            check(path)


def test_a_file_without_digest_is_known_as_one(path):
    torch.save(CONTENT, path)
    assert check(path) is None


def test_a_file_that_is_not_there(path):
    with pytest.raises(DamagedError, match=r"some\.ckpt cannot be read: No such file"):
        check(path)


def test_where_there_is_no_room_the_old_file_stays_and_the_bytes_are_told(path):
    save(CONTENT, path, 1)
    before, soft = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    larger = {"weights": torch.ones(50_000)}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, soft[1]))
        with pytest.raises(
            StorageError, match=rf"no room for {path} .*{size_of(larger):,} bytes are wanted and [\d,]+ are free"
        ):
            save(larger, path, 2)
        with pytest.raises(StorageError, match=rf"no room for {path} "):
            save(larger, path.with_name(f"{path.name}{PART}"), 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_nothing_is_needed_of_the_systems_temporary_folder(path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    save(CONTENT, path, 1)
    assert check(path)


def test_it_is_on_the_disk_before_it_takes_its_name(path, monkeypatch):
    done = []
    replace, fsync = Path.replace, checkpoint_files.os.fsync
    monkeypatch.setattr("os.fsync", lambda descriptor: (done.append("sync"), fsync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda part, target: (done.append("rename"), replace(part, target)))
    save(CONTENT, path, 1)
    assert done == ["sync", "rename", "sync"]


def test_an_error_of_the_system_is_found_behind_others():
    full = OSError(errno.ENOSPC, "No space left on device")
    behind = RuntimeError("unexpected pos 64")
    behind.__context__ = full
    assert checkpoint_files.system_error(behind) is full
    assert checkpoint_files.system_error(RuntimeError("of torch")) is None
