"""Pipes, sockets, devices and folders in the place of files: nobody waits for them."""

import os
import socket
import threading
from pathlib import Path

import pytest
from tiny import tiny_data, tiny_federation, tiny_trainer

from fl_lightning import ConfigurationError, LastCheckpoint, RunRecord, checkpoint_files, resuming
from fl_lightning.cli import main
from fl_lightning.experiments import job
from fl_lightning.experiments.results import read_results
from fl_lightning.experiments.run_folder import RunFolder
from fl_lightning.files import RoundLines, read_json, read_lines, take_lock
from fl_lightning.regular_files import check_regular, irregular
from fl_lightning.sealed import DamagedError


def make(path: Path, kind: str) -> Path:
    """Something at a path that is no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    return path


def in_time(function, *args):
    """What a function raises, which must not wait."""
    raised: list[BaseException] = []

    def call() -> None:
        try:
            function(*args)
        except BaseException as error:  # SystemExit too
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits"
    return raised[0] if raised else None


KINDS = ["a pipe", "a folder", "a socket", "a device"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_called_by_its_kind(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path has a hundred characters at most
    path = make(Path("x"), kind)
    assert irregular(path) == kind
    with pytest.raises(ConfigurationError, match=f"x is {kind} and no regular file"):
        check_regular(path)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link", "none"):
        check_regular(tmp_path / name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "read",
    [read_json, read_lines, checkpoint_files.check, lambda path: take_lock(path, 0.0), lambda p: RoundLines(p, afresh=True)],
)
def test_nobody_waits_for_what_is_no_file(tmp_path, monkeypatch, kind, read):
    monkeypatch.chdir(tmp_path)
    error = in_time(read, make(Path("x"), kind))
    assert isinstance(error, ConfigurationError)
    assert ("is a link to /dev/zero" if kind == "a device" else f"{kind} and no regular file") in str(error) or kind in str(
        error
    )


def fit(folder: Path, ckpt_path: str | None = None, rounds: int = 2) -> None:
    callbacks = [RunRecord({}), LastCheckpoint()]
    trainer = tiny_trainer(rounds, callbacks=callbacks, default_root_dir=str(folder), enable_checkpointing=True)
    trainer.fit(tiny_federation(), tiny_data(), ckpt_path=ckpt_path)


@pytest.mark.parametrize("ckpt_path", [None, "last"])
@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "config.yaml", "flip_rates.jsonl", "previous.ckpt"])
def test_a_run_is_refused_before_its_first_round_and_moves_nothing(tmp_path, name, ckpt_path):
    fit(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name, "a folder" if name == "previous.ckpt" else "a pipe")
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    error = in_time(fit, tmp_path, ckpt_path, 4)
    assert isinstance(error, ConfigurationError)
    assert f"{name} is " in str(error)
    assert "move away what is in its place" in str(error)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_checkpoint_that_is_no_file_is_damaged_and_the_other_named(tmp_path):
    fit(tmp_path)
    (tmp_path / "last.ckpt").unlink()
    make(tmp_path / "last.ckpt", "a pipe")
    error = in_time(fit, tmp_path, "last")
    assert "it is a pipe and no regular file; the last good one is" in str(error)
    (said,) = resuming.set_aside(tmp_path)
    assert "it is kept as damaged.ckpt" in said


def test_a_shard_that_is_no_file_is_damaged(tmp_path):
    make(tmp_path / "last.ckpt.shards" / "round-1" / "rank-0-of-1.pt", "a pipe")
    entry = {"world": 1, "folder": "last.ckpt.shards/round-1"}
    assert isinstance(in_time(resuming.sharded_state.read_files, entry, tmp_path), DamagedError)


@pytest.mark.parametrize("name", ["status.json", "run.json", "log.txt", "lock", "config.yaml", "training.lock"])
def test_a_job_does_not_wait(tmp_path, name, capfd):
    (tmp_path / "config.yaml").touch()
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name, "a pipe")
    if name == "training.lock":
        assert isinstance(in_time(lambda: RunFolder(tmp_path).state), ConfigurationError)
        return
    folder = RunFolder(tmp_path)
    error = in_time(job.run, folder, ["true"])
    assert isinstance(error, ConfigurationError)
    assert f"{tmp_path / name} is a pipe and no regular file" in str(error)


def test_an_index_that_is_no_file_is_named(tmp_path, capsys):
    index = make(tmp_path / "sweeps" / "x" / "sweep.json", "a pipe")
    assert "sweep.json is a pipe and no regular file" in str(in_time(read_results, index.parent, tmp_path))
    left = in_time(main, ["report", str(index.parent)])
    assert isinstance(left, SystemExit)
    assert left.code == 2
    assert capsys.readouterr().err.count("\n") == 1
