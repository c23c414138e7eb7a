"""What would end a run as if it were done is an error, whoever raises it."""

import json
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.profilers import SimpleProfiler
from tiny import Scale, fit, tiny_data, tiny_federation, tiny_trainer

from fl_lightning import BackdoorMetrics, RunRecord
from fl_lightning.aggregators import FedAvg


class Ends(L.Callback):
    """Ends the run in one of its hooks."""

    def __init__(self, hook: str, end: BaseException) -> None:
        def raise_it(*_: Any, **__: Any) -> None:
            raise end

        setattr(self, hook, raise_it)


HOOKS = [
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_validation_batch_end",
    "on_validation_end",
]


@pytest.mark.parametrize("end", [StopIteration(), GeneratorExit(), SystemExit(0)], ids=lambda end: type(end).__name__)
@pytest.mark.parametrize("hook", HOOKS)
def test_a_callback(hook, end, tmp_path):
    with pytest.raises(RuntimeError, match=rf"^\[Callback\]Ends.{hook} raises {type(end).__name__}, by which a run would end"):
        fit(tiny_federation(), rounds=1, callbacks=[Ends(hook, end), BackdoorMetrics(), RunRecord()], default_root_dir=tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["state"] == "failed"
    assert f"Ends.{hook} raises" in record["reason"]


class Mute(DummyLogger):
    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        raise StopIteration


class Unsaved(DummyLogger):
    logged = False

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        self.logged = True

    def save(self) -> None:
        if self.logged:
            raise StopIteration

    def finalize(self, status: str) -> None:
        pass


@pytest.mark.parametrize("logger", [Mute, Unsaved])
def test_a_logger(logger):
    with pytest.raises(RuntimeError, match=r"^a logger raises StopIteration, by which a run would end"):
        fit(tiny_federation(), rounds=2, logger=logger(), log_every_n_steps=1, callbacks=[BackdoorMetrics()])


class Exhausted(FedAvg):
    def forward(self, shard):
        return next(iter(()))


class Spent(Scale):
    def corrupt(self, shard, knowledge):
        next(iter(()))


@pytest.mark.parametrize("parts", [{"aggregator": Exhausted()}, {"attacks": [Spent(1.0)]}], ids=["rule", "attack"])
def test_a_rule_and_an_attack(parts):
    with pytest.raises(RuntimeError, match="training_step raises StopIteration") as caught:
        fit(tiny_federation(**parts))
    assert isinstance(caught.value.__cause__, StopIteration)


def test_an_evaluation_outside_training_and_a_profiler_that_is_used_twice():
    profiler = SimpleProfiler()
    for _ in range(2):
        trainer = tiny_trainer(1, callbacks=[Ends("on_test_batch_end", StopIteration())], profiler=profiler)
        with pytest.raises(RuntimeError, match="on_test_batch_end raises StopIteration"):
            trainer.test(tiny_federation(), tiny_data(), verbose=False)


def test_a_status_that_is_none_of_success_ends_as_it_did():
    with pytest.raises(SystemExit) as caught:
        fit(tiny_federation(), rounds=1, callbacks=[Ends("on_train_epoch_end", SystemExit(3))])
    assert caught.value.code == 3


def test_a_run_that_nobody_ends_has_all_its_rounds():
    assert fit(tiny_federation(), rounds=3, profiler="simple").global_step == 3
