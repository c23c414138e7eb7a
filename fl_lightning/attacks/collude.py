"""Collusion: all malicious clients of a round submit the same update.

A. Panda, S. Mahloujifar, A. N. Bhagoji, S. Chakraborty, P. Mittal, "SparseFed: Mitigating Model Poisoning Attacks in Federated
Learning with Sparsification", AISTATS 2022, https://arxiv.org/abs/2112.06274, Section 5 (colluding attackers).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch

from fl_lightning.attacks.base import Attack, Attacker, Knowledge
from fl_lightning.attacks.crafted import uniform
from fl_lightning.attacks.poisoning import pooled
from fl_lightning.data.base import Samples
from fl_lightning.data.outcomes import Outcome
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.shard import UpdateShard

Mode = Literal["pool", "first", "mean"]


class Collude(Attack):
    """f identical updates: f identical votes in every coordinate, the worst case for a mask of sign consistency, and the best
    for a rule that looks for close neighbours.

    Put it after the attacks that poison data and before those that rewrite updates.

    Args:
        mode: `pool`: the round's malicious clients put their (poisoned) data together, one trains on all of it, all submit
            that. `first`: the first of them trains on its own data, all submit that, as in the authors' code. `mean`: each
            trains, all submit the mean of their updates, as far as these are finite.

    Example:
        >>> shard = UpdateShard.from_updates(torch.tensor([[1.0], [2.0], [4.0]]), malicious=torch.tensor([False, True, True]))
        >>> Collude(mode="mean").corrupt(shard, Knowledge(mask=lambda s: torch.ones(1, dtype=torch.bool)))
        >>> shard.values.flatten()
        tensor([1., 3., 3.])
    """

    outcomes = (Outcome,)

    def __init__(self, *, mode: Mode = "pool") -> None:
        if mode not in get_args(Mode):
            raise ConfigurationError(f"Collude.mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        self.mode = mode

    def conspire(self, datasets: Sequence[Samples], attackers: Sequence[Attacker]) -> list[Samples]:
        if self.mode == "mean":
            return list(datasets)
        nothing = datasets[0].subset(torch.empty(0, dtype=torch.int64))
        of_first = pooled(datasets) if self.mode == "pool" else datasets[0]
        return [of_first, *(nothing for _ in datasets[1:])]

    def corrupt(self, shard: UpdateShard, knowledge: Knowledge) -> None:
        self._unite(shard)

    def corrupt_buffers(self, shard: UpdateShard) -> None:
        self._unite(shard)

    def _unite(self, shard: UpdateShard) -> None:
        rows = shard.malicious
        trained = rows & shard.finite_rows() if self.mode == "mean" else rows & (rows.cumsum(0) == 1)
        if trained.any():
            shard.rewrite(rows, lambda _, vector: vector, shard.combine(uniform(trained)))
