"""Whether the clients that a rule turned away were the malicious ones."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import lightning as L
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.callbacks.detections import DETECTION_FILE, Detections, detect
from fl_lightning.callbacks.history import History
from fl_lightning.callbacks.lines_of_rounds import open_lines
from fl_lightning.callbacks.trial import is_trial
from fl_lightning.checked import real
from fl_lightning.errors import ConfigurationError
from fl_lightning.federation import Federation
from fl_lightning.files.run_files import RoundLines
from fl_lightning.updates.shard import UpdateShard

log = logging.getLogger(__name__)

RATES = ("tpr", "fpr", "tpr_below", "fpr_below", "auroc", "clean_fpr", "clean_fpr_below")


def rates(attacked: Detections, clean: Detections) -> dict[str, float]:
    """The rates by the names of `RATES`, of rounds with and without attackers, as far as there is somebody to divide by."""
    without = {f"clean_{name}": rate for name, rate in clean.rates.items()}  # there are no others than of benign clients
    return attacked.rates | without


class DetectionMetrics(L.Callback):
    """Compares the rule's verdict on each client with whether it was malicious; the same on any number of ranks.

    Logs per round, as `detection/<name>`:

    - `turned_away`: clients with verdict 0, those excluded for an update that is not finite among them.
    - `tpr`, `fpr`: share of the malicious, and of the benign clients that were turned away. Rounds with attackers alone.
    - `tpr_below`, `fpr_below`: the same for clients whose verdict is less than `threshold` times the mean verdict of the
      round, for rules that weight or clip and seldom give 0.
    - `auroc`: of the verdict as a score, without any threshold: the probability that a malicious client has a lower one than
      a benign client of the same round, ties counting one half.
    - `clean_fpr`, `clean_fpr_below`: as `fpr`, in rounds without attackers, where there is no true positive rate.

    `run.json` has them over the run as `detection`, counts added over rounds before they are divided, with the numbers of
    `attacked_rounds` and `clean_rounds`. Each round's counts are a line of `detection.jsonl` in
    `Trainer(default_root_dir=...)`: `round` (t, from 0) and the counts of `Detections`; a resumed run goes on with it.

    A rule that does not judge clients leaves nothing to measure, which is said before training.

    Args:
        threshold: share of the mean verdict of the round's clients below which one counts as flagged, in (0, 1]. With the
            default a client is flagged that counted less than half of what clients did on average.

    Example:
        >>> trainer = L.Trainer(strategy="federated", callbacks=[DetectionMetrics()])
    """

    def __init__(self, *, threshold: float = 0.5) -> None:
        if not 0 < real("DetectionMetrics.threshold", threshold) <= 1:
            raise ConfigurationError(
                f"DetectionMetrics.threshold must lie in (0, 1], got {threshold}: it is a share of the round's mean verdict; "
                ".5 is usual"
            )
        self.threshold = threshold
        self.attacked = self.clean = Detections()  # of all rounds so far
        self.missed = False  # whether it has been told that a rule forgot to judge
        self.lines: RoundLines | None = None
        self.kept: dict[str, Any] = {}  # the file as it was at the checkpoint that the run goes on from

    def measured(self, federation: L.LightningModule) -> list[str]:
        """What may be logged in training, by its full names."""
        assert isinstance(federation, Federation)
        return [f"detection/{name}" for name in ("turned_away", *RATES)] if federation.aggregator.judges else []

    def for_run_json(self, federation: Federation, history: History) -> dict[str, Any]:
        """What `RunRecord` adds to `run.json`."""
        found = self.over_the_run()
        return {"detection": found} if found else {}

    def over_the_run(self) -> dict[str, Any]:
        """Numbers of rounds, clients turned away, and each of `RATES`, None where it is not defined; empty before a verdict."""
        attacked, clean = self.attacked, self.clean
        if not (both := attacked + clean).rounds:
            return {}
        found: dict[str, Any] = {"attacked_rounds": attacked.rounds, "clean_rounds": clean.rounds, "threshold": self.threshold}
        found["turned_away"] = both.away_malicious + both.away_benign
        return found | {name: rates(attacked, clean).get(name) for name in RATES}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Federation)
        self.lines = None
        if trainer.is_global_zero and not pl_module.aggregator.judges:
            log.warning("DetectionMetrics measures nothing: %s", no_verdict(pl_module.aggregator))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the file at the first round: what an earlier run left has been put aside by now."""
        assert isinstance(pl_module, Federation)
        if not trainer.global_step:
            self.attacked = self.clean = Detections()
        if self.lines is not None or is_trial(trainer) or not trainer.is_global_zero or not pl_module.aggregator.judges:
            return
        self.lines = open_lines(self, trainer, DETECTION_FILE, self.kept)

    def on_aggregate(self, federation: Federation, shard: UpdateShard, aggregate: Tensor) -> None:
        outcome = federation.outcome
        assert outcome is not None
        if outcome.verdict is None:
            if federation.aggregator.judges and federation.trainer.is_global_zero and not self.missed:
                self.missed = True
                log.warning(
                    "DetectionMetrics measures nothing in round %d: judges of %s is true, but its forward has not called "
                    "shard.judge; call it, or have judges be false",
                    outcome.round,
                    type(federation.aggregator).__name__,
                )
            return
        found = detect(outcome.verdict.cpu(), outcome.cohort.malicious.cpu(), self.threshold)
        of_round = (found, Detections()) if found.malicious else (Detections(), found)
        self.attacked, self.clean = self.attacked + of_round[0], self.clean + of_round[1]
        logged = {"turned_away": float(found.away_malicious + found.away_benign), **rates(*of_round)}
        federation.log_dict({f"detection/{name}": value for name, value in logged.items()}, batch_size=1)
        if self.lines is not None:
            counts = {name: value for name, value in asdict(found).items() if name != "rounds"}
            self.lines.add({"round": outcome.round, **counts})

    def state_dict(self) -> dict[str, Any]:
        file = {} if self.lines is None else self.lines.state()
        return {"attacked": asdict(self.attacked), "clean": asdict(self.clean), "file": file}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.attacked, self.clean = Detections(**state_dict["attacked"]), Detections(**state_dict["clean"])
        self.kept = state_dict["file"]


def no_verdict(rule: Aggregator) -> str:
    """That a rule does not judge clients, and what to do."""
    remedy = "take another rule, or leave the callback out"
    for part in rule.modules():
        if isinstance(part, Aggregator) and getattr(part, "verdicts", None) is False:
            remedy = f"set verdicts of {type(part).__name__} to true"
    return f"{type(rule).__name__} does not judge clients; {remedy}"
