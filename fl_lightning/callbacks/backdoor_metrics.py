"""Main-task accuracy (Acc) and attack success rate (ASR) of the global model."""

import logging
import re
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from torchmetrics import Metric

from fl_lightning.callbacks.evaluation_table import show_evaluation
from fl_lightning.callbacks.history import History
from fl_lightning.callbacks.measures import Measure, Share, as_taken, check_metric, values_of
from fl_lightning.errors import ConfigurationError
from fl_lightning.federation import Federation
from fl_lightning.modules.predicting import predict
from fl_lightning.modules.undisturbed import undisturbed

log = logging.getLogger(__name__)

TRIED = 64
"""Test samples that a metric of the user's is tried on."""


class BackdoorMetrics(L.Callback):
    """Logs `val/acc` and `val/asr` after each evaluation, `test/...` under `Trainer.test`, through any Lightning logger.

    - `acc`: share of the clean test set that is classified correctly; of tokens, of all positions but padding; of several
      labels per sample, of the samples with all of them right; of numbers R2, the share of variance explained.
    - `asr`: share of the samples that carry the backdoor, true class not the target, that are classified as the target.
      Logged where an attack stamps test samples, whether or not malicious clients take part.
    - `asr_<name>`: the same for further stamped sets of an attack, for example `asr_part0` for a part of `DBA`'s trigger.
    - `acc_source`: accuracy on the clean test samples of the class under attack, where the attack has one.
    - `perplexity`: of tasks that ask for the next word, the exponential of the mean cross entropy of positions.
    - what `metrics` names, on the clean test set. `run.json` has these and the perplexity as `metrics`.

    Each rank counts its own batches and all are put together in the order of batches, so every sample counts once, and the
    figures have the same bits on any number of ranks. `validate` and `test` end with a
    table of them, and loggers get them at the round of the checkpoint. Samples for which the model gives NaN, or infinite
    logits among which no class is ahead, count as wrong, and as no success of the attack; that there are some is said once.

    Args:
        metrics: torchmetrics objects by the name that they are logged by. Each is fed with logits (b, C) and classes (b,); of
            tokens with those of all positions but padding; of several labels with logits (b, C) and rows (b, C) of 0 and 1; of
            numbers with outputs and targets (b,) or (b, m). It must give one number, and be able to merge states.

    Raises:
        ConfigurationError: before training, if a metric is none of this kind.

    Example:
        >>> trainer = L.Trainer(strategy="federated", callbacks=[BackdoorMetrics()])
    """

    reserved = ("val/acc", "val/asr")  # also where no attack stamps samples, and there is no ASR

    def __init__(self, metrics: dict[str, Metric] | None = None) -> None:
        for name in metrics or {}:
            if not re.fullmatch(r"[A-Za-z]\w*", str(name)) or re.match(r"acc|asr|round$|perplexity$", str(name)):
                raise ConfigurationError(
                    f"BackdoorMetrics.metrics has the name {name!r}; it must begin with a letter, hold letters, digits and _ "
                    "alone, and not be taken, as those are that begin with acc or asr"
                )
        self.metrics = dict(metrics or {})
        self.measures: dict[str, Measure | Share] = {}
        self._of_predictions: list[str] = []  # those of the clean test set that are more than a share of hits
        self.undefined = torch.zeros(2, dtype=torch.int64)  # of this rank's predictions: how many there are not; all
        self._tried = False
        self._told = False
        self._loaded: int | None = None  # the round of the checkpoint that `validate` or `test` was given

    def measured(self, federation: L.LightningModule) -> list[str]:
        """What will be logged in training, by its full names."""
        return [f"val/{name}" for name in (*self._names(federation), *self._further(federation))]

    def for_run_json(self, federation: Federation, history: History) -> dict[str, Any]:
        """What `RunRecord` adds to `run.json`."""
        further = {name: history.last(name) for name in self._further(federation)}
        return {"metrics": further} if further else {}

    def _names(self, federation: L.LightningModule) -> list[str]:
        assert isinstance(federation, Federation)
        names = [metric_name(evaluation_set) for evaluation_set in federation.data.evaluation]
        return names if self._source(federation) is None else [*names, "acc_source"]

    def _further(self, federation: L.LightningModule) -> dict[str, Metric]:
        """Metrics of the clean test set beside Acc: the task's own, in float64, and the user's."""
        assert isinstance(federation, Federation)
        own = {name: metric.set_dtype(torch.float64) for name, metric in federation.data.outcome.metrics().items()}
        return own | self.metrics

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Try the user's metrics on some test samples."""
        assert isinstance(pl_module, Federation)
        self._tried = True
        if not self.metrics:
            return
        test, client, device = pl_module.data.evaluation["clean"], pl_module.client, pl_module.device
        with isolate_rng(), undisturbed(client), torch.no_grad():
            client.eval()
            parts = []
            for indices in torch.arange(min(TRIED, len(test))).tensor_split(2 if len(test) > 1 else 1):
                output = predict(client, move_data_to_device(test.batch(indices), device))
                targets = test.targets[indices.to(test.targets.device)].to(device)
                parts.append(pl_module.data.outcome.for_metrics(output, targets))
            for name, metric in self.metrics.items():
                check_metric(f"BackdoorMetrics.metrics.{name}", metric, parts)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Federation)
        if not self._tried:
            self.on_fit_start(trainer, pl_module)
        of_predictions = self._further(pl_module)
        if (accuracy := pl_module.data.outcome.accuracy()) is not None:
            of_predictions["acc"] = accuracy.set_dtype(torch.float64)
        self.measures = {name: Share(pl_module.device) for name in self._names(pl_module)}
        self.measures |= {name: Measure(metric, pl_module.device) for name, metric in of_predictions.items()}
        self._of_predictions = list(of_predictions)
        self.undefined = torch.zeros(2, dtype=torch.int64, device=pl_module.device)

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
        outcome, number = pl_module.data.outcome, batch_idx * trainer.world_size + trainer.global_rank
        output, targets, hits, counted = (outputs[name] for name in ("output", "targets", "hits", "counted"))
        self.undefined[0] += outputs["undefined"].sum()
        self.undefined[1] += counted.sum()
        name = metric_name(list(pl_module.data.evaluation)[dataloader_idx])
        if name not in self._of_predictions:
            self.measures[name].update(number, hits, counted)
        if name != "acc":
            return
        if "acc_source" in self.measures:
            self.measures["acc_source"].update(number, hits, counted & (targets == self._source(pl_module)))
        if self._of_predictions:
            predictions, wanted = outcome.for_metrics(output, targets)
            for name in self._of_predictions:
                measure = self.measures[name]
                assert isinstance(measure, Measure)
                exact = predictions if name in self.metrics else predictions.double()
                measure.update(number, *as_taken(measure.metric, exact, wanted))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" or trainer.loggers:
            pl_module.log("step", float(self._round(trainer)))  # the loggers' x-axis: rounds
        self._tell_undefined(trainer, pl_module)
        for name, value in values_of(self.measures, pl_module.device).items():
            pl_module.log(f"{stage(trainer)}/{name}", value, prog_bar=name in ("acc", "asr"))

    def _tell_undefined(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say once that the model predicts nothing for some samples, on all ranks together."""
        number, of = trainer.strategy.reduce(self.undefined, reduce_op="sum").tolist()
        if number and not self._told:
            self._told = True
            assert isinstance(pl_module, Federation)
            log.warning(
                "after round %d the model gives NaN or infinite logits for %d of %d evaluated samples, so that there is no "
                "predicted class; %s, here and in later evaluations",
                self._round(trainer),
                number,
                of,
                pl_module.data.outcome.loses,
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loop = trainer.test_loop if trainer.testing else trainer.validate_loop
        if trainer.state.fn == "fit" or not loop.verbose:
            return
        loop.verbose = False  # Lightning's own table has every metric under every data set, of which it knows no names
        if trainer.is_global_zero:
            assert isinstance(pl_module, Federation)
            values = {name: float(trainer.callback_metrics[f"{stage(trainer)}/{name}"]) for name in self.measures}
            sets = {metric_name(name): name for name in pl_module.data.evaluation}
            sets["acc_source"] = f"clean, of class {self._source(pl_module)}"
            show_evaluation(
                [(sets.get(name, "clean"), f"{stage(trainer)}/{name}", value) for name, value in values.items()],
                f"{'test' if trainer.testing else 'validate'}, after round {self._round(trainer)}",
            )

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end
    on_test_end = on_validation_end

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._loaded = None if trainer.state.fn == "fit" else int(checkpoint["global_step"])

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._loaded, self._told, self._tried = None, False, False

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
