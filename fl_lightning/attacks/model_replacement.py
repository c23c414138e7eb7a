"""Model replacement: malicious clients scale their updates up so that the mean becomes their model.

E. Bagdasaryan, A. Veit, Y. Hua, D. Estrin, V. Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020,
https://arxiv.org/abs/1807.00459, Section 4.2.
"""

from __future__ import annotations

import math

from torch import Tensor

from fl_lightning.attacks.base import Attack, Knowledge
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.shard import UpdateShard


class ModelReplacement(Attack):
    """g' = gamma * g for every malicious client.

    Against FedAvg with weights a_i, gamma_i = 1 / (f a_i) makes the f attackers' part of the mean the mean of their updates,
    at full strength: where benign updates cancel out, the new model is the attackers'.

    Args:
        gamma: the factor, more than 0; 1 / (f a_i) where left out, from the reported sample counts.
        buffers: whether updates of buffers (BatchNorm's running statistics) are scaled too, as in the authors' code.

    Differs from the paper: the paper's attackers also keep near the global model as they train, which `ConstrainAndScale` does;
    buffers stay as they are by default.

    Example:
        >>> import torch
        >>> shard = UpdateShard.from_updates(torch.tensor([[1.0], [3.0]]), malicious=torch.tensor([False, True]))
        >>> ModelReplacement().corrupt(shard, Knowledge(mask=lambda s: torch.ones(1, dtype=torch.bool)))
        >>> shard.values.flatten()
        tensor([1., 6.])
    """

    def __init__(self, *, gamma: float | None = None, buffers: bool = False) -> None:
        if gamma is not None and not 0 < gamma < math.inf:
            raise ConfigurationError(f"{type(self).__name__}.gamma must be more than 0 and finite, got {gamma}")
        self.gamma = gamma
        self.buffers = buffers

    def corrupt(self, shard: UpdateShard, knowledge: Knowledge) -> None:
        factors = self.factors(shard)
        shard.rewrite(shard.malicious, lambda rows: factors * rows)

    def corrupt_buffers(self, shard: UpdateShard) -> None:
        if self.buffers:
            factors = self.factors(shard)
            shard.rewrite(shard.malicious, lambda rows: factors * rows)

    def factors(self, shard: UpdateShard) -> Tensor:
        """(f, 1) float32, a factor for each malicious client."""
        shares = shard.shares[shard.malicious]
        return (shares.new_full((len(shares),), self.gamma) if self.gamma is not None else 1 / (len(shares) * shares))[:, None]
