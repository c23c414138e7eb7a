"""SIGTERM, to one rank or to a process that does not hear it."""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from ranks import CONTEXT, _rank, on_ranks
from tiny import tiny_data, tiny_federation, tiny_trainer

from fl_lightning import LastCheckpoint, RunRecord
from fl_lightning.checkpoints.resuming import whole
from fl_lightning.machine import stopping
from fl_lightning.machine.going_on import how_to_go_on
from fl_lightning.machine.stopping import Stopping
from fl_lightning.machine.strategy import FederatedStrategy


class Terminated(L.Callback):
    """SIGTERM comes to one rank within a round, and the others go on to the next collective."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_aggregate(self, federation, shard, aggregate) -> None:
        if federation.global_step == self.step and federation.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)


def terminated(folder: str, world: int, rank: int) -> tuple[int, Any]:
    """Rounds that were done, and the handler of SIGTERM afterwards."""
    callbacks = [Terminated(rank, 2), LastCheckpoint(every_n_rounds=50)]
    trainer = tiny_trainer(9, devices=world, callbacks=callbacks, default_root_dir=folder, enable_checkpointing=True)
    with pytest.raises(SIGTERMException):
        trainer.fit(tiny_federation(), tiny_data())
    return trainer.global_step, signal.getsignal(signal.SIGTERM)


@pytest.mark.parametrize(("world", "rank"), [(1, 0), (2, 1)])
def test_all_ranks_end_after_the_round_with_a_checkpoint(tmp_path, world, rank):
    assert on_ranks(world, terminated, str(tmp_path), world, rank) == [(3, signal.SIG_DFL)] * world
    assert whole(tmp_path / "last.ckpt") == 3


class Kept(L.Callback):
    """The round of the last checkpoint as each round begins; None where there is none."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rounds: list[int | None] = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.rounds.append(whole(self.file) if self.file.exists() else None)


def slowly(folder: str, slow: dict[int, list[int]]) -> list[int | None]:
    """Rounds of checkpoints, where ranks take long for some rounds; rank 0 writes them."""
    kept = Kept(Path(folder, "last.ckpt"))

    class Clock(FederatedStrategy):
        def agree_to_stop(self) -> None:
            self._round_began -= 1000.0 if trainer.global_step in slow.get(self.global_rank, ()) else 0.0
            super().agree_to_stop()

    callbacks = [kept, LastCheckpoint(every_n_rounds=50)]
    world = max(slow) + 1
    options = {"callbacks": callbacks, "default_root_dir": folder, "enable_checkpointing": True}
    trainer = tiny_trainer(5, devices=world, strategy=Clock(), **options)
    trainer.fit(tiny_federation(), tiny_data())
    return kept.rounds


@pytest.mark.parametrize("slow", [{0: [2, 3]}, {0: [], 1: [2, 3]}])
def test_a_long_round_is_followed_by_a_checkpoint_as_the_next_may_be_given_up(tmp_path, slow):
    assert on_ranks(len(slow), slowly, str(tmp_path), slow)[0] == [None, None, 2, 3, 3]


def deaf(folder: str) -> None:
    """Hears nothing within a long call of a library."""
    stopping.STOP_SECONDS = 0.1
    Stopping(lambda number: Path(folder, str(int(number))).touch()).begin()
    Path(folder, "begun").touch()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)


def test_a_process_that_hears_nothing_ends_all_the_same(tmp_path):
    process = CONTEXT.Process(target=deaf, args=(str(tmp_path),), daemon=True)
    process.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(20)
    assert process.exitcode == 128 + signal.SIGTERM
    assert {path.name for path in tmp_path.iterdir()} == {"begun", str(int(signal.SIGTERM)), str(int(signal.SIGKILL))}


def test_whoever_heard_of_it_before_hears_of_it_still(monkeypatch):
    heard = []
    before = signal.getsignal(signal.SIGTERM)
    one = Stopping(users=lambda number, frame: heard.append(number))
    one.begin()
    os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + 5
    while not one.received and time.monotonic() < deadline:
        time.sleep(0.01)
    assert one.received
    assert heard == [signal.SIGTERM]
    one.end()
    assert signal.getsignal(signal.SIGTERM) is before


def test_it_leaves_no_thread_and_no_file_behind():
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        one = Stopping()
        one.begin()
        one.end()
    deadline = time.monotonic() + 5
    while [t for t in threading.enumerate() if t.name == "SIGTERM"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [t for t in threading.enumerate() if t.name == "SIGTERM"]
    assert len(os.listdir("/proc/self/fd")) == files


class TerminatedBefore(L.Callback):
    """SIGTERM comes to one rank when Lightning has taken it over and no round has begun."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)


def terminated_before(world: int, folder: str) -> None:
    trainer = tiny_trainer(2, devices=world, callbacks=[TerminatedBefore()], default_root_dir=folder)
    trainer.fit(tiny_federation(), tiny_data())


@pytest.mark.parametrize("world", [1, 2])
def test_before_the_first_round_a_rank_ends_at_once(tmp_path, world):
    """Whoever started the ranks ends the others then."""
    results = CONTEXT.SimpleQueue()
    processes = [
        CONTEXT.Process(
            target=_rank, args=(rank, world, str(tmp_path), results, terminated_before, (world, str(tmp_path))), daemon=True
        )
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    processes[-1].join(60.0)
    assert processes[-1].exitcode == -signal.SIGTERM
    for process in processes:
        process.kill()
        process.join()


def validated(folder: str) -> Any:
    trainer = tiny_trainer(1, devices=2, default_root_dir=folder)
    seen = []

    class Seen(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append(signal.getsignal(signal.SIGTERM))

    trainer.callbacks.append(Seen())  # pyrefly: ignore[missing-attribute]
    trainer.validate(tiny_federation(), tiny_data(), verbose=False)
    return seen, dist.get_world_size()


def test_an_evaluation_has_nothing_to_save_and_ends_at_once(tmp_path):
    assert on_ranks(2, validated, str(tmp_path)) == [([signal.SIG_DFL], 2)] * 2


class Stuck(L.Callback):
    """A round that goes on for ever once SIGTERM has come."""

    def on_aggregate(self, federation, shard, aggregate) -> None:
        if federation.global_step == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)


def stuck(folder: str, checkpoints: bool) -> None:
    stopping.STOP_SECONDS = 0.1
    os.environ.pop("MASTER_PORT", None)  # of the process that this one was forked from, which may still listen there
    with Path(folder, "said").open("w") as said:
        os.dup2(said.fileno(), 2)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        own = [LastCheckpoint()] if checkpoints else []
        callbacks = [Stuck(), RunRecord(), *own]
        trainer = tiny_trainer(9, callbacks=callbacks, default_root_dir=folder, enable_checkpointing=checkpoints)
        trainer.fit(tiny_federation(), tiny_data())


@pytest.mark.parametrize(
    ("checkpoints", "how"),
    [
        (True, "there is no checkpoint yet, so that the run begins again"),
        (False, "no checkpoint is written, as checkpoints are"),
    ],
)
def test_a_first_round_that_is_given_up_says_what_there_is_to_go_on_with(tmp_path, checkpoints, how):
    process = CONTEXT.Process(target=stuck, args=(str(tmp_path), checkpoints), daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM
    assert f"in a round that went on for 0.1 s more; {how}" in (tmp_path / "said").read_text()
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["state"], record["reason"], record["rounds"]) == ("interrupted", "SIGTERM after round 0", 0)


def test_it_is_said_how_a_run_goes_on(tmp_path):
    trainer = tiny_trainer(9, default_root_dir=tmp_path)
    assert how_to_go_on(trainer, after_the_round=True).startswith("no checkpoint is written")
    own, others = LastCheckpoint(), ModelCheckpoint(tmp_path / "others")
    trainer = tiny_trainer(9, default_root_dir=tmp_path, enable_checkpointing=True, callbacks=[others])
    assert how_to_go_on(trainer, after_the_round=True).startswith("there is no checkpoint yet")
    others.best_model_path = "others/epoch=1.ckpt"
    assert how_to_go_on(trainer) == "go on with ckpt_path=others/epoch=1.ckpt"
    trainer = tiny_trainer(9, default_root_dir=tmp_path, enable_checkpointing=True, callbacks=[own])
    assert how_to_go_on(trainer).startswith("there is no checkpoint yet")
    assert how_to_go_on(trainer, after_the_round=True) == "go on with --ckpt_path last"
    (tmp_path / "last.ckpt").touch()
    assert how_to_go_on(trainer) == "go on with --ckpt_path last"
