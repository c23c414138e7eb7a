"""Accuracy class by class and client by client, of which a mean over all samples tells nothing."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from fl_lightning.callbacks.backdoor_metrics import stage
from fl_lightning.callbacks.history import History
from fl_lightning.callbacks.lines_of_rounds import open_lines
from fl_lightning.callbacks.trial import is_trial
from fl_lightning.checked import with_checked_arguments
from fl_lightning.data.batch_classes import keeps_order
from fl_lightning.data.module import FederatedDataModule
from fl_lightning.data.outcomes import Outcome
from fl_lightning.errors import ConfigurationError
from fl_lightning.federation import Federation
from fl_lightning.files.run_files import RoundLines

FILE = "accuracy_by_group.jsonl"


@with_checked_arguments
class AccuracyByGroup(L.Callback):
    """Measures Acc on the clean test set by class, by client, or both, after each evaluation.

    - By class: the share of each class's samples that is right, of tokens of its positions. Where samples have several labels,
      the share of samples in which that label is right.
    - By client: the share of a client's own test samples that is right, those of the groups (writers, roles, authors) that its
      training samples are of; of tokens, of their positions. For data that say so: `FEMNIST`, `Shakespeare`, `NextWord`, and
      `from_datasets(test_keys=...)`, dealt out by `ByKey` or `PackedKeys`.

    Logs over the classes that occur `val/acc_class_mean`, each class counting once, and `val/acc_class_min`; over clients with
    test samples `val/acc_client_mean`, `val/acc_client_min` and `val/acc_client_std`. `run.json` has all of them by the last
    evaluation, as `acc_by_class` (by name, or number) and `acc_by_client`. Every evaluation is a line of
    `accuracy_by_group.jsonl` in `Trainer(default_root_dir=...)`: `round`, `class`, a list of those that occur, by number, with
    `class_right` and `class_all`, and the same of `client`. Counts of ranks are added, so that figures are the same on any
    number of them.

    Args:
        classes: whether to measure by class.
        clients: whether to measure by client.

    Raises:
        ConfigurationError: before training, if the task has no classes, or no test samples of clients.

    Example:
        >>> trainer = L.Trainer(strategy="federated", callbacks=[AccuracyByGroup(clients=True)])
    """

    def __init__(self, *, classes: bool = True, clients: bool = False) -> None:
        if not classes and not clients:
            raise ConfigurationError("AccuracyByGroup measures nothing: set classes or clients to true, or leave it out")
        self.classes, self.clients = classes, clients
        self.counts: dict[str, Tensor] = {}  # (2, G) int64 of this rank: right, all
        self.last: dict[str, dict[str, float]] = {}
        self.owner: Tensor | None = None  # (n,) int64, the client of each test sample, -1 for none
        self.lines: RoundLines | None = None
        self.kept: dict[str, Any] = {}  # the file as it was at the checkpoint that the run goes on from

    def measured(self, federation: L.LightningModule) -> list[str]:
        """What will be logged in training, by its full names."""
        of_class = ["mean", "min"] if self.classes else []
        of_client = ["mean", "min", "std"] if self.clients else []
        return [f"val/acc_class_{name}" for name in of_class] + [f"val/acc_client_{name}" for name in of_client]

    def for_run_json(self, federation: Federation, history: History) -> dict[str, Any]:
        """What `RunRecord` adds to `run.json`."""
        return {f"acc_by_{kind}": values for kind, values in self.last.items()}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Federation)
        self._check(pl_module.data)
        self.lines = None

    def _check(self, data: FederatedDataModule) -> None:
        outcome = data.outcome
        if outcome.accuracy() is not None or (self.classes and type(outcome).by_class is Outcome.by_class):
            raise ConfigurationError(f"AccuracyByGroup needs classes, but the task asks for {outcome.words}; leave it out")
        if self.clients:
            self.owner = owners(data)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the file at the first round: what an earlier run left has been put aside by now."""
        if not trainer.global_step:
            self.last = {}
        if self.lines is None and trainer.is_global_zero and not is_trial(trainer):
            self.lines = open_lines(self, trainer, FILE, self.kept)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Federation)
        data = pl_module.data
        if trainer.state.fn != "fit":
            self._check(data)
        assert data.task is not None
        groups = {"class": data.task.num_classes} if self.classes else {}
        groups |= {"client": len(data.clients)} if self.clients else {}
        self.counts = {
            kind: torch.zeros(2, number, dtype=torch.int64, device=pl_module.device) for kind, number in groups.items()
        }

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, Federation)
        data = pl_module.data
        if outputs is None or list(data.evaluation)[dataloader_idx] != "clean":
            return
        hits, counted, targets = outputs["hits"], outputs["counted"], outputs["targets"]
        if self.classes:
            right, groups = data.outcome.by_class(outputs["output"], targets, hits, counted)
            add(self.counts["class"], groups, right.long(), torch.ones_like(groups))
        if self.clients:
            assert self.owner is not None
            first = (batch_idx * trainer.world_size + trainer.global_rank) * data.eval_batch_size
            groups = self.owner[first : first + len(targets)].to(targets.device)
            right, every = ((part.reshape(len(groups), -1)).sum(1) for part in (hits & counted, counted))
            known = groups >= 0
            add(self.counts["client"], groups[known], right[known], every[known])

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Federation)
        names = list(pl_module.data.class_names)
        line: dict[str, Any] = {"round": trainer.global_step}
        for kind, own in self.counts.items():
            counts = trainer.strategy.reduce(own, reduce_op="sum").cpu()
            there = counts[1] > 0
            shares = counts[0, there].double() / counts[1, there]
            numbers = torch.nonzero(there).flatten().tolist()
            called = [names[i] if kind == "class" and i < len(names) else str(i) for i in numbers]
            self.last[kind] = dict(zip(called, shares.tolist(), strict=True))
            right, every = counts[:, there].tolist()
            line |= {kind: numbers, f"{kind}_right": right, f"{kind}_all": every}
            if len(shares):
                figures = {"mean": shares.mean(), "min": shares.min(), "std": shares.std(unbiased=False)}
                for name in ("mean", "min") if kind == "class" else ("mean", "min", "std"):
                    pl_module.log(f"{stage(trainer)}/acc_{kind}_{name}", figures[name].to(pl_module.device))
        if self.lines is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.lines.add(line)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last, "file": {} if self.lines is None else self.lines.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last, self.kept = state_dict["last"], state_dict["file"]


def add(counts: Tensor, groups: Tensor, right: Tensor, every: Tensor) -> None:
    """Add to `counts` (2, G) what of each of k parts is right and counted at all, by its group; all (k,) int64."""
    counts[0].index_add_(0, groups, right)
    counts[1].index_add_(0, groups, every)


def owners(data: FederatedDataModule) -> Tensor:
    """(n,) int64, which client holds the group of each test sample, -1 for none.

    Raises:
        ConfigurationError: test samples have no groups, or clients are none of groups.
    """
    task = data.task
    assert task is not None, "setup() of the data module has not run"
    if task.keys is None or task.test_keys is None:
        raise ConfigurationError(
            "AccuracyByGroup.clients needs test samples that belong to clients, but these data have none; use FEMNIST, "
            "Shakespeare or NextWord, give test_keys=, or set it to false"
        )
    if not keeps_order(task.test):
        raise ConfigurationError(
            "AccuracyByGroup.clients needs batches in the order of the test samples, which a collate_fn of your own may "
            "change; leave that out, or set clients to false"
        )
    keys = task.keys.cpu()
    owner = torch.full((max(int(keys.max()), int(task.test_keys.max())) + 1,), -1)
    for client, rows in enumerate(data.clients):
        held = keys[rows].unique()
        if (owner[held] >= 0).any():
            raise ConfigurationError(
                f"AccuracyByGroup.clients: client {client} and {int(owner[held].max())} share a group, so that its test "
                "samples are of neither; deal out by ByKey or PackedKeys, or set clients to false"
            )
        owner[held] = client
    found = owner[task.test_keys.clamp(min=0)]
    return found.where(task.test_keys >= 0, -1)
