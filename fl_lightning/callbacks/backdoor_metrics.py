"""Main-task accuracy (Acc) and attack success rate (ASR) of the global model."""

import logging
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from fl_lightning.callbacks.evaluation_table import show_evaluation
from fl_lightning.federation import Federation

log = logging.getLogger(__name__)


class BackdoorMetrics(L.Callback):
    """Logs `val/acc` and `val/asr` after each evaluation, `test/...` under `Trainer.test`, through any Lightning logger.

    - `acc`: share of the clean test set that is classified correctly.
    - `asr`: share of the samples that carry the backdoor, true class not the target, that are classified as the target.
      Logged where an attack stamps test samples, whether or not malicious clients take part.
    - `asr_<name>`: the same for further stamped sets of an attack, for example `asr_part0` for a part of `DBA`'s trigger.
    - `acc_source`: accuracy on the clean test samples of the class under attack, where the attack has one.

    Each rank counts its own batches and the counts are added, so every sample counts once. `validate` and `test` end with a
    table of them, and loggers get them at the round of the checkpoint. Samples for which the model gives NaN, or infinite
    logits among which no class is ahead, count as wrong, and as no success of the attack; that there are some is said once.
    """

    reserved = ("val/acc", "val/asr")  # also where no attack stamps samples, and there is no ASR

    def __init__(self) -> None:
        self.metrics: dict[str, MeanMetric] = {}
        self.undefined = torch.zeros(2, dtype=torch.int64)  # of this rank's samples: for how many there is no prediction; all
        self._told = False
        self._loaded: int | None = None  # the round of the checkpoint that `validate` or `test` was given

    def measured(self, federation: L.LightningModule) -> list[str]:
        """What will be logged in training, by its full names."""
        return [f"val/{name}" for name in self._names(federation)]

    def _names(self, federation: L.LightningModule) -> list[str]:
        assert isinstance(federation, Federation)
        names = [metric_name(evaluation_set) for evaluation_set in federation.data.evaluation]
        return names if self._source(federation) is None else [*names, "acc_source"]

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        names = self._names(pl_module)
        # Sums of zeros and ones in float64 are exact for any number of samples.
        self.metrics = {name: MeanMetric() for name in names}
        self.undefined = torch.zeros(2, dtype=torch.int64, device=pl_module.device)
        for metric in self.metrics.values():
            metric.set_dtype(torch.float64).to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if outputs is None:
            return  # this rank has no batch left
        assert isinstance(pl_module, Federation)
        hits: Tensor = outputs["hits"]
        name = metric_name(list(pl_module.data.evaluation)[dataloader_idx])
        self.metrics[name].update(hits)
        self.undefined[0] += outputs["undefined"].sum()
        self.undefined[1] += len(hits)
        if name == "acc" and "acc_source" in self.metrics:
            self.metrics["acc_source"].update(hits[outputs["targets"] == self._source(pl_module)])

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" or trainer.loggers:
            pl_module.log("step", float(self._round(trainer)))  # the loggers' x-axis: rounds
        self._tell_undefined(trainer)
        for name, metric in self.metrics.items():
            pl_module.log(f"{stage(trainer)}/{name}", metric.compute(), prog_bar=name in ("acc", "asr"))

    def _tell_undefined(self, trainer: L.Trainer) -> None:
        """Say once that the model predicts nothing for some samples, on all ranks together."""
        number, of = trainer.strategy.reduce(self.undefined, reduce_op="sum").tolist()
        if number and not self._told:
            self._told = True
            log.warning(
                "after round %d the model gives NaN or infinite logits for %d of %d evaluated samples, so that there is no "
                "predicted class; they count as wrong in Acc and as no success in ASR, here and in later evaluations",
                self._round(trainer),
                number,
                of,
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loop = trainer.test_loop if trainer.testing else trainer.validate_loop
        if trainer.state.fn == "fit" or not loop.verbose:
            return
        loop.verbose = False  # Lightning's own table has every metric under every data set, of which it knows no names
        if trainer.is_global_zero:
            assert isinstance(pl_module, Federation)
            values = {name: float(trainer.callback_metrics[f"{stage(trainer)}/{name}"]) for name in self.metrics}
            sets = {metric_name(name): name for name in pl_module.data.evaluation}
            sets["acc_source"] = f"clean, of class {self._source(pl_module)}"
            show_evaluation(
                [(sets[name], f"{stage(trainer)}/{name}", value) for name, value in values.items()],
                f"{'test' if trainer.testing else 'validate'}, after round {self._round(trainer)}",
            )

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end
    on_test_end = on_validation_end

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._loaded = None if trainer.state.fn == "fit" else int(checkpoint["global_step"])

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._loaded, self._told = None, False

    def _round(self, trainer: L.Trainer) -> int:
        return trainer.global_step if self._loaded is None else self._loaded

    @staticmethod
    def _source(federation: Federation) -> int | None:
        return next((attack.source_label for attack in federation.attacks if attack.source_label is not None), None)


def stage(trainer: L.Trainer) -> str:
    """What metrics' names begin with."""
    return "test" if trainer.testing else "val"


def metric_name(evaluation_set: str) -> str:
    """What is measured on a set of `FederatedDataModule.evaluation`.

    >>> [metric_name(name) for name in ("clean", "stamped", "stamped/part0")]
    ['acc', 'asr', 'asr_part0']
    """
    kind, _, name = evaluation_set.partition("/")
    metric = "asr" if kind == "stamped" else "acc"
    return f"{metric}_{name}" if name else metric
