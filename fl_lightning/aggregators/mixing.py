"""Rules around a rule: mix the updates with each other first, then aggregate what comes out."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.data.base import Samples
from fl_lightning.data.probe import ProbeBatches
from fl_lightning.updates.layers import Layer
from fl_lightning.updates.shard import UpdateShard


class Mixing(Aggregator):
    """Base of wrappers that replace the updates g_1 .. g_N by means y_1 .. y_M of some of them.

    Buffers go to the inner rule unmixed.

    Verdict: with the inner rule's v_j, client i has sum_j v_j matrix[j, i] / `reference`_i, brought to the same largest value
    as the v_j. None where the inner rule has none.

    Args:
        rule: what aggregates the mixed updates.
    """

    def __init__(self, rule: Aggregator) -> None:
        super().__init__()
        self.rule = rule
        self.probe = rule.probe

    @abstractmethod
    def matrix(self, shard: UpdateShard) -> Tensor:
        """(M, N) float64 on the CPU, the same on all ranks: y_j = sum_i matrix[j, i] g_i."""
        raise NotImplementedError

    @abstractmethod
    def reference(self, matrix: Tensor) -> Tensor:
        """(N,) float64, what the clients would count in the sum of y_1 .. y_M if the mixing judged nobody."""
        raise NotImplementedError

    def whose(self, shard: UpdateShard) -> Tensor | None:
        """(M,) int64, the clients that the mixed updates still are, if anyone's."""
        return None

    def mixed(self, shard: UpdateShard) -> UpdateShard:
        """The shard of y_1 .. y_M."""
        return shard.mix(self.matrix(shard), self.whose(shard))

    def forward(self, shard: UpdateShard) -> Tensor:
        matrix = self.matrix(shard)
        mixed = shard.mix(matrix, self.whose(shard))
        aggregate = self.rule(mixed)
        if mixed.verdict is not None:
            counted = mixed.verdict.double() @ matrix / self.reference(matrix)
            shard.judge(counted * float(mixed.verdict.max()) / (float(counted.max()) or 1.0), most=1.0)
        return aggregate

    @property
    def judges(self) -> bool:
        return self.rule.judges

    def mask(self, shard: UpdateShard) -> Tensor:
        has_mask = type(self.rule).mask is not Aggregator.mask
        return self.rule.mask(self.mixed(shard)) if has_mask else super().mask(shard)

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return self.rule.aggregate_buffers(shard)

    def check_model(self, layers: Sequence[Layer]) -> None:
        self.rule.check_model(layers)

    def check_task(self, samples: Samples, num_classes: int) -> None:
        self.rule.check_task(samples, num_classes)

    @property
    def needs_root(self) -> bool:
        return self.rule.needs_root

    @property
    def needs_clients(self) -> bool:
        return self.rule.needs_clients

    def examine(self, module: L.LightningModule, probe: ProbeBatches, generator: torch.Generator) -> Tensor:
        return self.rule.examine(module, probe, generator)

    def examine_broadcast(self, module: L.LightningModule, probe: ProbeBatches, generator: torch.Generator) -> None:
        self.rule.examine_broadcast(module, probe, generator)

    def before_broadcast(self, module: L.LightningModule, round_number: int) -> None:
        self.rule.before_broadcast(module, round_number)

    def after_step(self, module: L.LightningModule, round_number: int) -> None:
        self.rule.after_step(module, round_number)

    def predict(self, module: L.LightningModule, batch: Any, generator: torch.Generator) -> Tensor:
        return self.rule.predict(module, batch, generator)

    def train_benign(
        self, client: L.LightningModule, samples: Samples, num_classes: int, generator: torch.Generator, memory: Tensor
    ) -> dict[str, float] | None:
        return self.rule.train_benign(client, samples, num_classes, generator, memory)

    def client_memory_size(self, samples: Samples, num_classes: int) -> int:
        return self.rule.client_memory_size(samples, num_classes)

    def accepts(self, probabilities: Tensor) -> Tensor:
        return self.rule.accepts(probabilities)


def has_own(rule: Aggregator, hook: str) -> bool:
    """Whether a rule, or one inside it, does something of its own in a hook. Passing it on to the rule inside is nothing.

    >>> from fl_lightning.aggregators import FLIP, Bucketing, FedAvg
    >>> [has_own(Bucketing(rule=rule), "train_benign") for rule in (FLIP(), FedAvg())]
    [True, False]
    """
    for part in rule.modules():
        if isinstance(part, Aggregator):
            passive = Mixing if isinstance(part, Mixing) else Aggregator
            if getattr(type(part), hook) is not getattr(passive, hook):
                return True
    return False
