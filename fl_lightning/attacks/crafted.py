"""What attacks on the rule itself share: all malicious clients submit one vector, made from honest updates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from fl_lightning.attacks.base import Attack, Attacker, Knowledge
from fl_lightning.data.base import Samples
from fl_lightning.data.joined import join
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.shard import UpdateShard

Source = Literal["benign", "colluders"]

Like = Literal["own", "mean"]
"""Which benign update stands beside a malicious client's: what it would have sent honestly, or the mean of all attackers'."""


class Crafted(Attack):
    """Base of untargeted attacks that look at honest updates and submit one vector in every malicious client's name.

    Updates that are not finite are not looked at, as the server excludes them; where no honest one is left to look at,
    malicious clients send what they found.

    Args:
        knowledge: whose updates they look at. `benign`: those of the round's benign clients, the strongest attacker of the
            literature. `colluders`: those that the round's malicious clients would have sent honestly, each from its own
            clean data; then every malicious client trains twice.
    """

    def __init__(self, *, knowledge: Source = "benign") -> None:
        if knowledge not in get_args(Source):
            raise ConfigurationError(f"{type(self).__name__}.knowledge must be benign or colluders, got {knowledge!r}")
        self.knowledge = knowledge

    def rehearse(self, datasets: Sequence[Samples], attackers: Sequence[Attacker], num_benign: int) -> list[Samples]:
        return list(datasets) if self.knowledge == "colluders" else []

    def corrupt(self, shard: UpdateShard, knowledge: Knowledge) -> None:
        honest = shard if knowledge.rehearsed is None else knowledge.rehearsed
        rows = honest.finite_rows() & ~honest.malicious
        if rows.any():
            crafted = self.craft(honest, rows, shard.num_clients, int(shard.malicious.sum()))
            shard.rewrite(shard.malicious, lambda _, vector: vector, crafted)

    @abstractmethod
    def craft(self, honest: UpdateShard, rows: Tensor, n: int, f: int) -> Tensor:
        """The vector that is submitted.

        Args:
            honest: the updates that may be looked at.
            rows: (M,) bool, which of its rows, at least one.
            n: clients in the round.
            f: malicious ones among them.

        Returns:
            (S,) float32.
        """
        raise NotImplementedError


def uniform(rows: Tensor) -> Tensor:
    """(M,) float64, the coefficients of the mean of the chosen rows ((M,) bool); zeros if none is."""
    return rows.to(torch.float64) / rows.sum().clamp(min=1)


def shadow_clients(datasets: Sequence[Samples], attackers: Sequence[Attacker], count: int) -> list[Samples]:
    """Data of simulated benign clients: random parts, new in every round, of all that the attackers hold.

    Args:
        datasets: the malicious clients' clean data, in cohort order.
        attackers: who they are.
        count: how many there shall be; each has as many samples as an attacker on average, without repeats.
    """
    pool = join(datasets)
    size = -(-len(pool) // len(datasets))
    draws = attackers[0].generator(f"shadow clients, round {attackers[0].round_number}", shared=True)
    return [pool.subset(torch.randperm(len(pool), generator=draws)[:size]) for _ in range(count)]


def beside_benign(shard: UpdateShard, honest: UpdateShard | None, like: Like) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Each malicious update with a benign one beside it, for attacks that mix the two.

    Args:
        shard: the round's updates.
        honest: what the malicious clients' clean data gave, in cohort order.
        like: `own`, or `mean` of those that are finite.

    Yields:
        The row's number, a mask (N,) of that row alone, and (S,) of the benign update.
    """
    assert honest is not None, "the attack has asked for rehearsals"
    mean = honest.combine(uniform(honest.finite_rows())) if like == "mean" else None
    for j, i in enumerate(torch.nonzero(shard.malicious).flatten().tolist()):
        row = torch.zeros_like(shard.malicious)
        row[i] = True
        yield i, row, honest.row(j) if mean is None else mean
