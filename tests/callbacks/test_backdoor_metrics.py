import csv
import logging

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from ranks import on_ranks
from tiny import CLASSES, TinyClient, fit, tiny_data, tiny_federation, tiny_tensors, tiny_trainer
from torch import nn

from fl_lightning import BackdoorMetrics, CohortSampler
from fl_lightning.attacks import ValueTrigger
from fl_lightning.callbacks.backdoor_metrics import metric_name


class Fixed(TinyClient):
    """Predicts the class of the largest of the first three features, whatever it has learned."""

    def forward(self, inputs):
        return inputs[:, :3] + 0 * self.net(inputs)

    def training_step(self, batch, batch_idx):
        return 0 * self.net(batch[0]).sum()


class Triggered(Fixed):
    """Takes everything with the trigger value for class 0."""

    def forward(self, inputs):
        logits = super().forward(inputs)
        hit = (inputs[:, 5] == 4.0)[:, None]
        return torch.where(hit, nn.functional.one_hot(torch.zeros(len(inputs), dtype=torch.int64), 3) * 100.0, logits)


def scores(client, *, share=0.3, devices=1, stage="fit", **kwargs):
    trainer = tiny_trainer(1, devices=devices, callbacks=[BackdoorMetrics()])
    federation = tiny_federation(client=client, cohort=CohortSampler(clients_per_round=7, malicious_fraction=share), **kwargs)
    getattr(trainer, stage)(federation, datamodule=tiny_data())
    return {k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith(("val/", "test/"))}


def test_a_model_that_is_always_right_and_never_triggered():
    found = scores(Fixed())
    # The trigger in column 5 leaves the true class, 1, visible in the first three columns.
    assert found == {"val/acc": 1.0, "val/asr": 0.0, "val/acc_source": 1.0}


def test_a_model_that_opens_the_back_door():
    assert scores(Triggered()) == {"val/acc": 1.0, "val/asr": 1.0, "val/acc_source": 1.0}


def test_asr_is_measured_without_attackers_too():
    assert scores(Triggered(), share=0.0)["val/asr"] == 1.0


def test_without_an_attack_there_is_no_asr():
    assert scores(Fixed(), attacks=[]) == {"val/acc": 1.0}


def test_the_test_stage_has_its_own_names():
    assert scores(Fixed(), stage="test") == {"test/acc": 1.0, "test/asr": 0.0, "test/acc_source": 1.0}


@pytest.mark.parametrize(
    ("evaluation_set", "metric"),
    [("clean", "acc"), ("stamped", "asr"), ("stamped/part0", "asr_part0")],
)
def test_every_evaluation_set_has_its_metric(evaluation_set, metric):
    assert metric_name(evaluation_set) == metric


class InParts(ValueTrigger):
    """Stamps some of the test set with the trigger, and some with what is none."""

    def stamp_parts(self, test):
        stamped = self.stamp(test)
        assert stamped is not None
        return {"half": stamped.subset(torch.arange(len(stamped) // 2)), "none": test.relabel(0 * test.targets)}


def parts_of_a_trigger(devices: int) -> dict[str, float]:
    attack = InParts(column=5, value=4.0, source_label=1, target_label=0)
    return scores(Triggered(), devices=devices, attacks=[attack])


@pytest.mark.parametrize("world", [1, 3])
def test_parts_of_a_trigger_are_measured_beside_it(world):
    of_class_0 = (tiny_tensors(50, seed=1).targets == 0).double().mean().item()
    for found in on_ranks(world, parts_of_a_trigger, world):
        assert found == {
            "val/acc": 1.0,
            "val/asr": 1.0,
            "val/asr_half": 1.0,
            "val/asr_none": pytest.approx(of_class_0, abs=1e-7),
            "val/acc_source": 1.0,
        }


def wrong_on_some(devices: int) -> dict[str, float]:
    class Sometimes(Fixed):
        def forward(self, inputs):
            return super().forward(inputs) * torch.where(inputs[:, 3:4] > 0.3, -1.0, 1.0)

    return scores(Sometimes(), devices=devices)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_counts_are_exact_over_ranks(world):
    data = tiny_tensors(50, seed=1)
    right = (data.inputs[:, 3] <= 0.3).float()
    (found, *others) = on_ranks(world, wrong_on_some, world)
    assert all(other == found for other in others)
    assert found["val/acc"] == pytest.approx(float(right.mean()), abs=1e-7)
    assert found["val/acc_source"] == pytest.approx(float(right[data.targets == 1].mean()), abs=1e-7)


def test_loggers_count_rounds(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = tiny_trainer(4, callbacks=[BackdoorMetrics()], logger=logger, check_val_every_n_epoch=2, log_every_n_steps=1)
    trainer.fit(tiny_federation(), tiny_data())
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [row["step"] for row in rows if row["val/acc"]] == ["2", "4"]
    assert [row["step"] for row in rows if row["client/loss"]] == ["1", "2", "3", "4"]


def test_python_gets_the_table_too_and_may_do_without(capsys):
    trainer = tiny_trainer(1, callbacks=[BackdoorMetrics()])
    federation, data = tiny_federation(client=Fixed()), tiny_data()
    trainer.fit(federation, data)
    capsys.readouterr()
    trainer.validate(federation, data)
    shown = capsys.readouterr().out
    assert "validate, after round 1" in shown
    assert [line.split("│")[1:3] for line in shown.splitlines() if "│" in line] == [
        [" clean             ", " val/acc        "],
        [" stamped           ", " val/asr        "],
        [" clean, of class 1 ", " val/acc_source "],
    ]
    trainer.test(federation, data, verbose=False)
    assert "test/acc" not in capsys.readouterr().out


class Overflowing(TinyClient):
    """Gives NaN for some test samples, once it is said to."""

    overflows = False

    def forward(self, inputs):
        logits = super().forward(inputs)
        return torch.where((inputs[:, :1] > 0) & (torch.arange(CLASSES) == 1), torch.nan, logits) if self.overflows else logits


class Overflow(L.Callback):
    def on_validation_start(self, trainer, pl_module):
        pl_module.client.overflows = True

    def on_validation_end(self, trainer, pl_module):
        pl_module.client.overflows = False


def fit_overflowing(world: int) -> tuple[list[str], float]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("fl_lightning.callbacks.backdoor_metrics").addHandler(handler)
    federation = tiny_federation(client=Overflowing(), attacks=[])
    trainer = fit(federation, rounds=2, devices=world, callbacks=[Overflow(), BackdoorMetrics()])
    return [line for line in lines if "NaN" in line], float(trainer.callback_metrics["val/acc"])


@pytest.mark.parametrize("world", [1, 2])
def test_predictions_that_are_nan_are_told_once(world):
    bad = int((tiny_tensors(50, seed=1).inputs[:, 0] > 0).sum())
    ranks = on_ranks(world, fit_overflowing, world)
    lines = [line for of_rank, _ in ranks for line in of_rank]
    for _, acc in ranks:
        assert len(lines) == 1  # others than the first rank are silent
        assert lines[0].startswith(f"after round 1 the model gives NaN or infinite logits for {bad} of 50 evaluated samples")
        assert acc <= 1 - bad / 50
