"""The last round is evaluated, once, whatever ends the run."""

import csv
from datetime import timedelta

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger
from ranks import on_ranks
from tiny import tiny_data, tiny_federation, tiny_trainer

from fl_lightning import BackdoorMetrics, LastCheckpoint
from fl_lightning.callbacks.digests import weights_sha256


class Evaluated(L.Callback):
    """Remembers after how many rounds there was an evaluation."""

    def __init__(self):
        self.rounds = []

    def on_validation_end(self, trainer, pl_module):
        self.rounds.append(trainer.global_step)


class StopAt(L.Callback):
    """Ends a run at the end of a round, as a user's own callback may."""

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.global_step == 4


class OutOfTime(Timer):
    """A timer whose time is over after four rounds."""

    def _check_time_remaining(self, trainer):
        trainer.should_stop = trainer.global_step >= 4


STOPPERS = {
    "rounds": lambda: ({"rounds": 4}, []),
    "steps": lambda: ({"rounds": -1, "max_steps": 4}, []),
    "time": lambda: ({}, [OutOfTime(timedelta(1))]),
    "time, asked at the end of a round": lambda: ({}, [OutOfTime(timedelta(1), interval="epoch")]),
    "the user's callback": lambda: ({}, [StopAt()]),
    "early stopping on what training logs": lambda: (
        {},
        [EarlyStopping("round/excluded_updates", check_on_train_epoch_end=True)],
    ),
}


@pytest.mark.parametrize(
    ("stopper", "every"), [*(("rounds", every) for every in (1, 3, 9, None)), *((name, 3) for name in list(STOPPERS)[1:])]
)
def test_whatever_ends_the_run(tmp_path, stopper, every):
    limits, callbacks = STOPPERS[stopper]()
    evaluated = Evaluated()
    kwargs = {"rounds": 8, "check_val_every_n_epoch": every, **limits}
    if every is None:  # every so many batches, across epochs
        kwargs["val_check_interval"] = 3
    trainer = tiny_trainer(
        callbacks=[evaluated, BackdoorMetrics(), *callbacks, LastCheckpoint()],
        default_root_dir=str(tmp_path),
        enable_checkpointing=True,
        **kwargs,
    )
    federation = tiny_federation()
    trainer.fit(federation, tiny_data())
    assert trainer.global_step == 4
    assert evaluated.rounds == [t for t in (1, 2, 3, 4) if t == 4 or t % (every or 3) == 0]
    kept = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert kept["federation"]["evaluated"] == kept["global_step"] == 4


def test_without_a_checkpoint_too():
    evaluated = Evaluated()
    early = EarlyStopping("round/excluded_updates", patience=1, check_on_train_epoch_end=True)
    tiny_trainer(8, callbacks=[evaluated, early], check_val_every_n_epoch=5).fit(tiny_federation(), tiny_data())
    assert evaluated.rounds == [2]


def test_a_run_that_wants_no_evaluation_has_none():
    evaluated = Evaluated()
    tiny_trainer(2, callbacks=[evaluated], limit_val_batches=0).fit(tiny_federation(), tiny_data())
    assert evaluated.rounds == []


def test_loggers_and_metrics_have_the_last_round(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = tiny_trainer(4, callbacks=[BackdoorMetrics()], logger=logger, check_val_every_n_epoch=3, log_every_n_steps=1)
    trainer.fit(tiny_federation(), tiny_data())
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [row["step"] for row in rows if row["val/acc"]] == ["3", "4"]
    assert [row["step"] for row in rows if row["client/loss"]] == ["1", "2", "3", "4"]
    assert "val/asr" in trainer.callback_metrics


def test_epochs_are_counted_as_before(tmp_path):
    """What checkpoints are named by."""
    named = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=True)
    tiny_trainer(3, callbacks=[named], enable_checkpointing=True, check_val_every_n_epoch=2).fit(tiny_federation(), tiny_data())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=0.ckpt", "epoch=1.ckpt", "epoch=2.ckpt"]


def test_a_checkpoint_of_the_evaluation_itself_does_not_bring_it_again(tmp_path):
    """As ModelCheckpoint saves by default where not every round is evaluated."""
    saves = ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_top_k=-1)
    tiny_trainer(4, callbacks=[saves], enable_checkpointing=True, check_val_every_n_epoch=2).fit(tiny_federation(), tiny_data())
    evaluated = Evaluated()
    trainer = tiny_trainer(4, callbacks=[evaluated], check_val_every_n_epoch=2)
    trainer.fit(tiny_federation(), tiny_data(), ckpt_path=str(tmp_path / "step=4.ckpt"))
    assert evaluated.rounds == []


def ended(folder: str, world: int) -> tuple[list[int], str, dict[str, float]]:
    evaluated, federation = Evaluated(), tiny_federation()
    trainer = tiny_trainer(
        4,
        devices=world,
        callbacks=[evaluated, BackdoorMetrics(), LastCheckpoint(every_n_rounds=2)],
        default_root_dir=f"{folder}/{world}",
        enable_checkpointing=True,
        check_val_every_n_epoch=3,
    )
    trainer.fit(federation, tiny_data())
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return evaluated.rounds, weights_sha256(federation.client), metrics


def test_ranks_evaluate_it_together(tmp_path):
    alone = on_ranks(1, ended, str(tmp_path), 1)[0]
    assert alone[0] == [3, 4]
    assert on_ranks(2, ended, str(tmp_path), 2) == [alone] * 2
