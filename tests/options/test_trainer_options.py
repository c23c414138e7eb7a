"""Every argument of the Trainer and every callback of Lightning works or is refused, as docs/reference/trainer.md says."""

import inspect
import logging
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import AsyncCheckpointIO, MixedPrecision, TorchCheckpointIO
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import FSDPStrategy
from tiny import TinyClient, fit, tiny_data, tiny_federation, tiny_trainer

from fl_lightning import (
    AggregationDiagnostics,
    BackdoorMetrics,
    ConfigurationError,
    FederatedStrategy,
    FlipRates,
    LastCheckpoint,
    RunRecord,
)

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "trainer.md").read_text()


def table(heading: str) -> dict[str, str]:
    """Name -> verdict, of a table of the page."""
    text = PAGE.partition(f"## {heading}")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (works|means|refused) \|", text, flags=re.MULTILINE))


ARGUMENTS = table("Arguments of the Trainer")
CALLBACKS = table("Lightning's callbacks")

WORKING = [
    {"accelerator": "cpu"},
    {"strategy": "auto"},
    {"strategy": FederatedStrategy()},
    {"devices": 1},
    {"num_nodes": 1},
    {"precision": "32-true"},
    {"logger": False},
    {"callbacks": [callbacks.Callback()]},
    {"min_epochs": 2},
    {"max_steps": 2},
    {"min_steps": 2},
    {"max_time": "00:01:00:00"},
    {"limit_train_batches": 1.0},
    {"limit_val_batches": 0},
    {"limit_val_batches": 1.0},
    {"limit_test_batches": 0},
    {"limit_predict_batches": 1},
    {"overfit_batches": 0},
    {"val_check_interval": 1.0},
    {"val_check_interval": 2, "check_val_every_n_epoch": None},
    {"check_val_every_n_epoch": 2},
    {"num_sanity_val_steps": 2},
    {"num_sanity_val_steps": -1},
    {"log_every_n_steps": 0},
    {"log_every_n_steps": 2},
    {"enable_checkpointing": True},
    {"enable_progress_bar": True},
    {"enable_model_summary": True},
    {"accumulate_grad_batches": 1},
    {"gradient_clip_val": None},
    {"deterministic": True},
    {"benchmark": True},
    {"inference_mode": False},
    {"use_distributed_sampler": False},
    {"profiler": "simple"},
    {"detect_anomaly": True},
    {"barebones": True, "log_every_n_steps": 0},
    {"plugins": [LightningEnvironment(), TorchCheckpointIO()]},
    {"sync_batchnorm": False},
    {"reload_dataloaders_every_n_epochs": 1},
    {"default_root_dir": "there"},
    {"enable_autolog_hparams": False},
]

REFUSED = [
    ({"strategy": FSDPStrategy()}, None),  # Lightning's own refusal, on a CPU
    ({"devices": 0}, None),
    ({"precision": "bf16-mixed"}, "model.local.precision"),
    ({"precision": 64}, "model.local.precision"),
    ({"plugins": [MixedPrecision("bf16-mixed", "cpu")]}, "model.local.precision"),
    ({"plugins": [AsyncCheckpointIO()]}, "AsyncCheckpointIO"),
    ({"max_epochs": 0}, "between 1 and 10,000,000"),
    ({"max_epochs": -1}, r"max_epochs=-1\) would never end"),
    ({"max_epochs": 10**15}, "between 1 and 10,000,000"),
    ({"max_steps": 0}, "max_steps=0"),
    ({"min_epochs": 3}, r"min_epochs=3\) is more than the 2 rounds"),
    ({"min_steps": 3}, r"min_steps=3\) is more than the 2 rounds"),
    ({"limit_train_batches": 0}, "limit_train_batches=0"),
    ({"limit_train_batches": 1}, r"limit_train_batches=1\)"),
    ({"limit_train_batches": 0.5}, "model.local.epochs"),
    ({"limit_val_batches": 1}, r"limit_val_batches=1\) would measure"),
    ({"limit_val_batches": 0.5}, r"limit_val_batches=0.5\) would measure"),
    ({"limit_test_batches": 3}, r"limit_test_batches=3\) would measure"),
    ({"overfit_batches": 1}, "overfit_batches=1"),
    ({"overfit_batches": 0.5}, "overfit_batches=0.5"),
    ({"val_check_interval": 0.5}, "check_val_every_n_epoch=n"),
    ({"val_check_interval": 2}, "check_val_every_n_epoch=n"),
    ({"val_check_interval": timedelta(seconds=5)}, r"'5 s'\) lets the clock decide"),
    ({"check_val_every_n_epoch": 0}, "must be at least 1"),
    ({"check_val_every_n_epoch": None}, "whole number of rounds"),
    ({"num_sanity_val_steps": -2}, "must be at least -1"),
    ({"log_every_n_steps": -1}, "must be at least 0"),
    ({"accumulate_grad_batches": 2}, "model.local.batch_size"),
    ({"gradient_clip_val": 1.0}, "model.local.gradient_clip_norm"),
    ({"gradient_clip_algorithm": "value"}, "gradient_clip_algorithm='value'"),
    ({"sync_batchnorm": True}, "model.buffers"),
    ({"model_registry": "mine"}, "model_registry='mine'"),
]

MADE = {
    "ModelCheckpoint": lambda: callbacks.ModelCheckpoint(monitor="val/acc", mode="max", every_n_epochs=1),
    "OnExceptionCheckpoint": lambda: callbacks.OnExceptionCheckpoint("exceptions"),
    "EarlyStopping": lambda: callbacks.EarlyStopping("val/asr"),
    "Timer": lambda: callbacks.Timer("00:01:00:00"),
    "ThroughputMonitor": lambda: callbacks.ThroughputMonitor(batch_size_fn=lambda batch: 1),
    "StochasticWeightAveraging": lambda: callbacks.StochasticWeightAveraging(swa_lrs=0.1),
    "GradientAccumulationScheduler": lambda: callbacks.GradientAccumulationScheduler({0: 2}),
    "ModelPruning": lambda: callbacks.ModelPruning("l1_unstructured", amount=0.5),
}
"""The callbacks that need arguments."""


def test_the_page_lists_every_argument_and_every_callback():
    assert set(ARGUMENTS) == set(inspect.signature(L.Trainer).parameters)
    assert set(CALLBACKS) == set(callbacks.__all__)


def test_every_argument_is_tried_as_the_page_has_it():
    works = {name for options in WORKING for name in options}
    refused = {name for options, _ in REFUSED for name in options}
    # What command and notebook do with it is tested below.
    assert set(ARGUMENTS) == works | refused | {"max_epochs", "fast_dev_run", "model_registry"}
    assert {name for name, verdict in ARGUMENTS.items() if verdict == "refused"} <= refused


def shown(value: Any) -> str:
    """A test's name, the same in every process: without addresses."""
    return re.sub(r" object at 0x\w+", "", str(value))


@pytest.mark.parametrize("options", WORKING, ids=shown)
def test_it_works(options, tmp_path):
    options: dict[str, Any] = {"callbacks": [BackdoorMetrics()], **options}
    if options.get("barebones"):
        options["callbacks"] = []
    trainer = fit(tiny_federation(), rounds=2, **options)
    assert trainer.global_step == 2
    measured = not options.get("barebones") and options.get("limit_val_batches") != 0
    assert ("val/acc" in trainer.callback_metrics) == (measured and isinstance(options["callbacks"][0], BackdoorMetrics))


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=shown)
def test_it_is_refused_before_training(options, message, tmp_path):
    federation, refusal = tiny_federation(), Exception if message is None else ConfigurationError
    options = {"rounds" if name == "max_epochs" else name: value for name, value in options.items()}
    given: dict[str, Any] = {"rounds": 2, **options}
    with pytest.raises(refusal, match=message):
        fit(federation, **given)
    assert federation.client_updates == 0
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name, verdict in CALLBACKS.items() if verdict != "refused"])
def test_a_callback_works(name, tmp_path, monkeypatch):
    if name == "DeviceStatsMonitor":
        pytest.importorskip("psutil")
    callback: Any = MADE.get(name, getattr(callbacks, name))()
    bar = isinstance(callback, callbacks.ProgressBar)
    trainer = fit(
        tiny_federation(),
        rounds=2,
        callbacks=[BackdoorMetrics(), callback],
        logger=CSVLogger(str(tmp_path)),
        enable_progress_bar=bar,
        enable_checkpointing=isinstance(callback, callbacks.Checkpoint),
    )
    assert trainer.global_step == 2
    if name == "ModelCheckpoint":
        assert Path(callback.best_model_path).exists()
    if name == "LearningRateMonitor":
        assert callback.lrs == {"lr-SGD": [1.0, 1.0]}


@pytest.mark.parametrize("name", [name for name, verdict in CALLBACKS.items() if verdict == "refused"])
def test_a_callback_is_refused(name):
    federation = tiny_federation()
    callback: Any = MADE.get(name, getattr(callbacks, name))()
    with pytest.raises(ConfigurationError, match=f"{name} cannot work in a federation: "):
        fit(federation, callbacks=[callback], enable_checkpointing=isinstance(callback, callbacks.Checkpoint))
    assert federation.client_updates == 0


def test_a_subclass_of_a_callback_that_is_refused_is_too():
    class Mine(callbacks.EMAWeightAveraging):
        pass

    with pytest.raises(ConfigurationError, match="Mine cannot work"):
        fit(tiny_federation(), callbacks=[Mine()])


@pytest.mark.parametrize("number", [1, 3, True])
def test_a_trial_has_so_many_rounds(number, caplog):
    federation = tiny_federation()
    trainer = fit(federation, rounds=9, fast_dev_run=number, callbacks=[BackdoorMetrics()])
    assert trainer.global_step == int(number)
    assert federation.client_updates == 7 * int(number)
    assert f"a trial of {int(number)} rounds" in caplog.text


def test_a_run_without_a_number_of_rounds_ends_by_a_callback_or_the_clock():
    stop = callbacks.EarlyStopping("val/acc", mode="max", stopping_threshold=0.0)
    federation = tiny_federation(compile_rules="never")
    assert fit(federation, rounds=-1, callbacks=[BackdoorMetrics(), stop]).global_step == 1
    assert fit(tiny_federation(compile_rules="never"), rounds=-1, max_time={"seconds": 1}).global_step > 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit_val_batches": 0}, "there will be no Acc and no ASR"),
        ({"barebones": True, "log_every_n_steps": 0}, "there will be no Acc and no ASR"),
        ({"check_val_every_n_epoch": 7}, "check_val_every_n_epoch=7) is more than the 2 rounds"),
        ({}, ""),
    ],
)
def test_what_may_not_be_meant_is_said_on_one_line(options, said, caplog):
    with caplog.at_level(logging.WARNING, "fl_lightning"):
        fit(tiny_federation(), rounds=2, **options)
    messages = [record.getMessage() for record in caplog.records if record.name == "fl_lightning.options.trainer_options"]
    assert len(messages) == bool(said)
    assert said in "".join(messages)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: callbacks.EarlyStopping("val_loss"), "monitors val_loss, which nobody logs; logged are val/acc, val/asr"),
        (lambda: callbacks.EarlyStopping("val/ars"), "did you mean val/asr"),
        (lambda: callbacks.EarlyStopping("val/asr", patience=-3), r"EarlyStopping\(patience=-3\) must be at least 0"),
        (lambda: callbacks.ModelCheckpoint(monitor="loss"), "client/NAME for what clients log as NAME"),
        (lambda: callbacks.ModelCheckpoint(train_time_interval=timedelta(seconds=1)), "train_time_interval"),
        (AggregationDiagnostics, "AggregationDiagnostics is there 2 times"),
        (callbacks.LearningRateMonitor, "LearningRateMonitor has no logger to give its figures to"),
        (callbacks.DeviceStatsMonitor, "DeviceStatsMonitor has no logger to give its figures to"),
        (lambda: callbacks.EarlyStopping("round/loss"), "monitors round/loss, which nobody logs"),
        (lambda: callbacks.EarlyStopping("diagnostics/norm"), "did you mean diagnostics/norm_after or diagnostics/norm_before"),
    ],
)
def test_callbacks_that_cannot_work_as_they_are_given_are_refused(callback, message):
    given = [BackdoorMetrics(), callback(), AggregationDiagnostics()]
    with pytest.raises(ConfigurationError, match=message):
        fit(tiny_federation(), callbacks=given, enable_checkpointing=True)


@pytest.mark.parametrize(
    "callback",
    [
        callbacks.EarlyStopping,
        lambda monitor: callbacks.ModelCheckpoint("best", monitor=monitor),
        lambda monitor: callbacks.ModelCheckpoint("best", monitor=monitor, every_n_train_steps=1),
    ],
    ids=range(3),
)
def test_a_metric_that_no_client_logs_is_named_after_the_first_round(callback, tmp_path):
    given: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": tmp_path / "run"}
    fit(tiny_federation(), rounds=1, callbacks=[LastCheckpoint()], **given)
    before = (tmp_path / "run" / "last.ckpt").read_bytes()
    message = r"monitors client/accuracy, which no client has logged in round 2; they log client/loss: .*self\.log\('accuracy'"
    with pytest.raises(ConfigurationError, match=message) as caught:
        fit(tiny_federation(), ckpt_path="last", callbacks=[LastCheckpoint(), callback("client/accuracy")], **given)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before


def test_what_need_not_be_there_may_be_waited_for():
    stop = callbacks.EarlyStopping("client/accuracy", strict=False)
    assert fit(tiny_federation(), rounds=2, callbacks=[stop]).global_step == 2


@pytest.mark.parametrize("monitor", ["round/refused", "diagnostics/kept_fraction", "diagnostics/flip_rate", "client/loss"])
def test_what_a_round_logs_may_be_waited_for(monitor):
    own = [AggregationDiagnostics(), FlipRates()]
    assert fit(tiny_federation(), rounds=2, callbacks=[*own, callbacks.EarlyStopping(monitor)]).global_step == 2


def test_diagnostics_say_beforehand_what_they_log():
    federation, diagnostics = tiny_federation(), AggregationDiagnostics()
    trainer = fit(federation, rounds=2, callbacks=[diagnostics])
    logged = {name for name in trainer.callback_metrics if name.startswith("diagnostics/")}
    assert logged == set(diagnostics.measured(federation))


def test_without_anybody_who_measures_no_evaluation_can_be_waited_for():
    with pytest.raises(ConfigurationError, match="BackdoorMetrics logs val/acc"):
        fit(tiny_federation(), callbacks=[callbacks.EarlyStopping("val/acc")])
    with pytest.raises(ConfigurationError, match="which nobody logs"):
        fit(tiny_federation(), callbacks=[BackdoorMetrics(), callbacks.EarlyStopping("val/acc")], limit_val_batches=0)


def test_what_clients_and_callbacks_of_the_users_own_log_may_be_waited_for():
    class Mine(L.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            pl_module.log("mine", 1.0)

    for monitor, others in (("client/loss", []), ("mine", [Mine()])):
        trainer = fit(tiny_federation(client=TinyClient()), rounds=2, callbacks=[*others, callbacks.EarlyStopping(monitor)])
        assert trainer.global_step == 2


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_refuses_what_would_measure_a_part(stage):
    limit = {"validate": "limit_val_batches", "test": "limit_test_batches"}[stage]
    with pytest.raises(ConfigurationError, match=limit):
        getattr(tiny_trainer(**{limit: 1}), stage)(tiny_federation(), tiny_data())


def test_own_callbacks_may_be_there_once_each(tmp_path):
    own = [BackdoorMetrics(), RunRecord(), LastCheckpoint(), AggregationDiagnostics()]
    assert fit(tiny_federation(), callbacks=own, enable_checkpointing=True, default_root_dir=tmp_path).global_step == 3


@pytest.mark.parametrize("kind", [callbacks.ModelCheckpoint, callbacks.OnExceptionCheckpoint])
@pytest.mark.parametrize("name", ["last", "previous"])
def test_lightnings_checkpoints_leave_the_runs_own_alone(kind, name, tmp_path):
    given: dict[str, Any] = {"rounds": 1, "default_root_dir": str(tmp_path), "enable_checkpointing": True}
    with pytest.raises(ConfigurationError, match=rf"would write {name}\.ckpt into .*another filename or dirpath"):
        fit(tiny_federation(), callbacks=[kind(dirpath=str(tmp_path), filename=name)], **given)
    fit(tiny_federation(), callbacks=[kind(dirpath=str(tmp_path / "best"), filename=name)], **given)
