"""No callback of the user's hides what the package logs, or is hidden."""

from typing import Any

import lightning as L
import pandas as pd
import pytest
from lightning.pytorch.loggers import CSVLogger
from tiny import fit, tiny_data, tiny_federation, tiny_trainer

from fl_lightning import BackdoorMetrics, RunRecord
from fl_lightning.errors import ConfigurationError
from fl_lightning.federation import Federation


class Logging(L.Callback):
    """Logs one name in one hook, in one of the ways that there are."""

    def __init__(self, name: str, hook: str, way: str = "log") -> None:
        def called(trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
            self.send(pl_module)

        self.name, self.way = name, way
        setattr(self, hook, called)

    def send(self, module: L.LightningModule) -> None:
        if self.way == "log_dict":
            module.log_dict({self.name: 0.5})
        elif self.way == "log":
            module.log(self.name, 0.5)
        else:  # which Lightning gives to callbacks
            vars(self)["log"](self.name, 0.5)


@pytest.mark.parametrize(
    ("name", "hook", "way", "owner"),
    [
        ("val/acc", "on_validation_epoch_end", "log", "BackdoorMetrics"),
        ("val/acc", "on_validation_batch_end", "log_dict", "BackdoorMetrics"),
        ("val/asr", "on_validation_epoch_end", "own log", "BackdoorMetrics"),
        ("val/acc_source", "on_validation_epoch_end", "log", "BackdoorMetrics"),
        ("val/round", "on_validation_epoch_end", "log", "RunRecord"),
        ("step", "on_validation_epoch_end", "log", "Federation"),
        ("step", "on_train_batch_start", "log", "Federation"),
        ("client/loss", "on_train_batch_end", "log", "Federation"),
        ("round/refused", "on_train_epoch_end", "log", "Federation"),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_a_name_that_is_taken_is_refused(name, hook, way, owner, first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    callbacks = [BackdoorMetrics(), *([RunRecord()] if owner == "RunRecord" else []), Logging(name, hook, way)]
    with pytest.raises(ConfigurationError) as caught:
        fit(tiny_federation(), rounds=1, callbacks=callbacks[::-1] if first else callbacks)
    said = str(caught.value)
    assert said.startswith(f"the callback Logging logs {name}, which is taken: ")
    assert owner in said
    assert "\n" not in said


def test_an_asr_that_is_not_measured_is_nobodys():
    with pytest.raises(ConfigurationError, match=r"val/asr, which is taken: BackdoorMetrics"):
        fit(tiny_federation(attacks=[]), rounds=1, callbacks=[BackdoorMetrics(), Logging("val/asr", "on_validation_epoch_end")])


def test_other_names_are_free():
    callbacks = [Logging("val/mine", "on_validation_epoch_end"), Logging("mine", "on_train_batch_end"), BackdoorMetrics()]
    logged = fit(tiny_federation(), rounds=2, callbacks=callbacks).callback_metrics
    assert logged["val/mine"] == logged["mine"] == 0.5
    assert logged["val/acc"] != 0.5


def test_a_callback_in_place_of_ours_may_have_its_names():
    class Own(BackdoorMetrics):
        """Logs one more."""

        def on_validation_epoch_end(self, trainer, pl_module):
            super().on_validation_epoch_end(trainer, pl_module)
            pl_module.log("val/more", 1.0)

    federation = tiny_federation()
    assert fit(federation, rounds=1, callbacks=[Own()]).callback_metrics["val/more"] == 1
    trainer = tiny_trainer(1, callbacks=[Logging("val/acc", "on_validation_epoch_end")])
    assert trainer.validate(federation, tiny_data(), verbose=False)[0]["val/acc"] == 0.5


def test_a_federation_of_the_users_is_named():
    class Mine(Federation):
        def on_validation_epoch_end(self):
            self.log("val/acc", 1.0)

    made = tiny_federation()
    made.__class__ = Mine
    with pytest.raises(ConfigurationError, match="Mine logs val/acc, which is taken"):
        fit(made, rounds=1, callbacks=[BackdoorMetrics()])


def test_a_rounds_numbers_are_logged_as_log_dict_does(tmp_path):
    logged = [{"a": 1.0, "b": 0.1}, {"a": 2.0}, {"a": -3.0, "b": 1 / 3}]

    class Both(Federation):
        def log_numbers(self, values):
            super().log_numbers(values | {f"fast/{name}": value for name, value in logged[self.global_step - 1].items()})
            self.log_dict({f"slow/{name}": value for name, value in logged[self.global_step - 1].items()}, batch_size=1)

    seen = []

    class Reader(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(
                {name: value.item() for name, value in trainer.callback_metrics.items() if name[:4] in ("fast", "slow")}
            )

    logger = CSVLogger(tmp_path, name="", version="")
    trainer = tiny_trainer(rounds=3, callbacks=[Reader()], logger=logger, log_every_n_steps=1)
    federation = tiny_federation()
    federation.__class__ = Both
    trainer.fit(federation, datamodule=tiny_data())
    for numbers in seen:
        assert {n[5:]: v for n, v in numbers.items() if n[0] == "f"} == {n[5:]: v for n, v in numbers.items() if n[0] == "s"}
    assert [numbers["fast/a"] for numbers in seen] == [1.0, 2.0, -3.0]
    rows = pd.read_csv(tmp_path / "metrics.csv")
    rows = rows[rows["fast/a"].notna()]
    assert rows["step"].tolist() == [1, 2, 3]
    for name in "ab":
        assert rows[f"fast/{name}"].equals(rows[f"slow/{name}"].rename(f"fast/{name}"))
    assert rows["fast/b"].isna().tolist() == [False, True, False]
