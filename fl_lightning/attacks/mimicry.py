"""Mimicry: malicious clients look benign but for a few coordinates.

X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks",
AISTATS 2024, https://arxiv.org/abs/2210.01834, Appendix D.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch

from fl_lightning.attacks.base import Attack, Attacker, Knowledge
from fl_lightning.attacks.crafted import Like, beside_benign
from fl_lightning.data.base import Samples
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.largest import largest
from fl_lightning.updates.shard import UpdateShard


class Mimicry(Attack):
    """g~_k = g'_k on the `kept` coordinates with the largest |g'_k|, and g_k elsewhere.

    g' is a malicious client's update, g a benign one: what the client itself would have sent honestly, or the mean of what
    all the round's malicious clients would have, as far as that is finite. Each malicious client trains twice. Put it after an
    attack that poisons data.

    Args:
        kept: coordinates that stay malicious, at least 0; all of them where there are fewer. Of equal ones those of lower
            coordinates go first.
        like: `own` or `mean`.

    Example:
        >>> import torch
        >>> shard = UpdateShard.from_updates(torch.tensor([[1.0, -5.0]]), malicious=torch.tensor([True]))
        >>> honest = UpdateShard.from_updates(torch.tensor([[0.2, 0.3]]))
        >>> Mimicry(kept=1).corrupt(shard, Knowledge(lambda s: torch.ones(2, dtype=torch.bool), rehearsed=honest))
        >>> shard.values
        tensor([[ 0.2000, -5.0000]])
    """

    def __init__(self, *, kept: int = 1000, like: Like = "own") -> None:
        if kept < 0:
            raise ConfigurationError(f"Mimicry.kept must be at least 0, got {kept}")
        if like not in get_args(Like):
            raise ConfigurationError(f"Mimicry.like must be own or mean, got {like!r}")
        self.kept = kept
        self.like = like

    def rehearse(self, datasets: Sequence[Samples], attackers: Sequence[Attacker], num_benign: int) -> list[Samples]:
        return list(datasets)

    def corrupt(self, shard: UpdateShard, knowledge: Knowledge) -> None:
        kept = min(self.kept, shard.num_coordinates)
        for i, row, benign in beside_benign(shard, knowledge.rehearsed, self.like):
            stays = largest(shard, shard.row(i).abs().nan_to_num(nan=torch.inf), kept)
            shard.rewrite(row, lambda g, keep, like: torch.where(keep, g, like), stays, benign)
