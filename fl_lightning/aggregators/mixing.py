"""Rules around a rule: mix the updates with each other first, then aggregate what comes out."""

from abc import abstractmethod
from collections.abc import Sequence

import lightning as L
import torch
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.data.base import Samples
from fl_lightning.updates.layers import Layer
from fl_lightning.updates.shard import UpdateShard


class Mixing(Aggregator):
    """Base of wrappers that replace the updates g_1 .. g_N by means y_1 .. y_M of some of them.

    Buffers go to the inner rule unmixed.

    Args:
        rule: what aggregates the mixed updates.
    """

    def __init__(self, rule: Aggregator) -> None:
        super().__init__()
        self.rule = rule

    @abstractmethod
    def mixed(self, shard: UpdateShard) -> UpdateShard:
        """The shard of y_1 .. y_M."""
        raise NotImplementedError

    def forward(self, shard: UpdateShard) -> Tensor:
        return self.rule(self.mixed(shard))

    def mask(self, shard: UpdateShard) -> Tensor:
        has_mask = type(self.rule).mask is not Aggregator.mask
        return self.rule.mask(self.mixed(shard)) if has_mask else super().mask(shard)

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return self.rule.aggregate_buffers(shard)

    def check_model(self, layers: Sequence[Layer]) -> None:
        self.rule.check_model(layers)

    @property
    def needs_root(self) -> bool:
        return self.rule.needs_root

    @property
    def needs_clients(self) -> bool:
        return self.rule.needs_clients

    def train_benign(
        self, client: L.LightningModule, samples: Samples, num_classes: int, generator: torch.Generator, memory: Tensor
    ) -> dict[str, float] | None:
        return self.rule.train_benign(client, samples, num_classes, generator, memory)

    def client_memory_size(self, samples: Samples, num_classes: int) -> int:
        return self.rule.client_memory_size(samples, num_classes)

    def accepts(self, probabilities: Tensor) -> Tensor:
        return self.rule.accepts(probabilities)
