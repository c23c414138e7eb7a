"""No callback of the user's hides what the package logs, or is hidden."""

from typing import Any

import lightning as L
import pytest
from tiny import fit, tiny_federation, tiny_trainer

from fl_lightning import BackdoorMetrics
from fl_lightning.errors import ConfigurationError
from fl_lightning.federation import Federation


class Logging(L.Callback):
    """Logs one name in one hook."""

    def __init__(self, name: str, hook: str, *, mapping: bool = False) -> None:
        def log(trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
            self.log(pl_module)

        self.name, self.mapping = name, mapping
        setattr(self, hook, log)

    def log(self, module: L.LightningModule) -> None:
        if self.mapping:
            module.log_dict({self.name: 0.5})
        else:
            module.log(self.name, 0.5)


@pytest.mark.parametrize(
    ("name", "hook", "owner"),
    [
        ("val/acc", "on_validation_epoch_end", "BackdoorMetrics"),
        ("val/acc", "on_validation_batch_end", "BackdoorMetrics"),
        ("val/asr", "on_validation_epoch_end", "BackdoorMetrics"),
        ("val/acc_source", "on_validation_epoch_end", "BackdoorMetrics"),
        ("val/round", "on_validation_epoch_end", "RunRecord"),
        ("step", "on_validation_epoch_end", "Federation"),
        ("step", "on_train_batch_start", "Federation"),
        ("client/loss", "on_train_batch_end", "Federation"),
        ("round/refused", "on_train_epoch_end", "Federation"),
    ],
)
@pytest.mark.parametrize("mapping", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_a_name_that_is_taken_is_refused(name, hook, owner, mapping, first):
    callbacks = [BackdoorMetrics(), Logging(name, hook, mapping=mapping)]
    with pytest.raises(ConfigurationError) as caught:
        fit(tiny_federation(), rounds=1, callbacks=callbacks[::-1] if first else callbacks)
    said = str(caught.value)
    assert said.startswith(f"the callback Logging logs {name}, which is taken: ")
    assert owner in said
    assert "\n" not in said


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
    assert trainer.validate(federation, fit(federation, rounds=1).datamodule, verbose=False)[0]["val/acc"] == 0.5


def test_a_federation_of_the_users_is_named():
    class Mine(Federation):
        def on_validation_epoch_end(self):
            self.log("val/acc", 1.0)

    made = tiny_federation()
    made.__class__ = Mine
    with pytest.raises(ConfigurationError, match="Mine logs val/acc, which is taken"):
        fit(made, rounds=1, callbacks=[BackdoorMetrics()])
