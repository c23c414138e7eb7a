"""The adaptive attack on a masking rule: put the strength into the coordinates that will pass.

X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks",
AISTATS 2024, https://arxiv.org/abs/2210.01834, Appendix C.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from fl_lightning.attacks.base import Attack, Attacker, Knowledge
from fl_lightning.attacks.crafted import shadow_clients, uniform
from fl_lightning.data.base import Samples
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.shard import UpdateShard

MaskKnowledge = Literal["previous_round", "oracle", "shadow", "colluders"]


class Adaptive(Attack):
    """Scales a malicious update g' on U, the coordinates that the attacker expects to pass the mask.

    g~_k = s g'_k for k in U, with s = min(s_max, ||g'|| / max(||g'_U||, eps)): what passes is as long as g' was. Signs are
    unchanged, so the true mask is too; a trimmed mean still drops the most extreme values. Put it last.

    Args:
        knowledge: how U is known.
            `previous_round`: coordinates that the last global step moved, which any client can see; none in the first round.
            `oracle`: the mask of this round's updates, the malicious ones as they are.
            `shadow`: the mask of N updates, those of N - f simulated clients that train on the attackers' pooled clean data
            and the f malicious ones.
            `colluders`: the mask of the attackers' own honest updates alone, with the rule's threshold applied to their number.
        others: what becomes of the other coordinates: they stay (`keep`), or become `zero`, or what the attackers' clean data
            give on average (`benign`).
        max_scale: s_max, at least 1.
        rule: a rule whose mask is meant, for servers whose own rule has none; the server's where left out. Such a mask cannot
            be seen in the last step.

    Differs from the paper: it does not say how the mask is known, and sets no bound on s.

    Example:
        >>> updates = torch.tensor([[1.0, 1.0], [3.0, -4.0]])
        >>> shard = UpdateShard.from_updates(updates, malicious=torch.tensor([False, True]))
        >>> Adaptive(knowledge="oracle").corrupt(shard, Knowledge(mask=lambda s: torch.tensor([True, False])))
        >>> shard.values
        tensor([[ 1.,  1.],
                [ 5., -4.]])
    """

    def __init__(
        self,
        *,
        knowledge: MaskKnowledge = "previous_round",
        others: Literal["keep", "zero", "benign"] = "keep",
        max_scale: float = 10.0,
        rule: nn.Module | None = None,
    ) -> None:
        if knowledge not in get_args(MaskKnowledge):
            raise ConfigurationError(
                f"Adaptive.knowledge must be one of {', '.join(get_args(MaskKnowledge))}, got {knowledge!r}"
            )
        if others not in ("keep", "zero", "benign"):
            raise ConfigurationError(f"Adaptive.others must be keep, zero or benign, got {others!r}")
        if not 1 <= max_scale < math.inf:
            raise ConfigurationError(f"Adaptive.max_scale must be at least 1 and finite, got {max_scale}")
        if rule is not None and (isinstance(rule, type) or not callable(getattr(rule, "mask", None))):
            raise ConfigurationError(f"Adaptive.rule must be a server rule, got {type(rule).__name__}")
        if rule is not None and knowledge == "previous_round":
            raise ConfigurationError(
                "Adaptive.rule is of no use with knowledge: previous_round, where the attackers look at how the global model "
                "moved; leave it out, or use oracle, shadow or colluders"
            )
        self.knowledge = knowledge
        self.others = others
        self.max_scale = max_scale
        self.rule_mask = None if rule is None else cast("Callable[[UpdateShard], Tensor]", rule.mask)
        self.watches_steps = knowledge == "previous_round"

    def rehearse(self, datasets: Sequence[Samples], attackers: Sequence[Attacker], num_benign: int) -> list[Samples]:
        """Each attacker's clean data, where they are asked for, and after them those of the simulated clients."""
        honest = list(datasets) if self.knowledge == "colluders" or self.others == "benign" else []
        if self.knowledge != "shadow":
            return honest
        return honest + shadow_clients(datasets, attackers, num_benign)

    def corrupt(self, shard: UpdateShard, knowledge: Knowledge) -> None:
        f = int(shard.malicious.sum())
        passing = self.expected_mask(shard, knowledge, f)  # (S,) bool, U
        norms = shard.norms()
        inside = shard.reduce(lambda values, mask: (values * mask).square().sum(1), passing.float()).sqrt().cpu()
        scales = (norms / inside.clamp(min=1e-12)).clamp(max=self.max_scale)[shard.malicious.cpu()]
        factors = scales.float().to(passing.device)[:, None]
        if self.others == "keep":
            shard.rewrite(shard.malicious, lambda rows, mask: torch.where(mask, factors * rows, rows), passing)
            return
        elsewhere = torch.zeros(shard.width, device=passing.device)
        if self.others == "benign":
            assert knowledge.rehearsed is not None
            own = knowledge.rehearsed.split(f)[0]
            elsewhere = own.combine(uniform(own.finite_rows()))
        shard.rewrite(shard.malicious, lambda rows, mask, b: torch.where(mask, factors * rows, b), passing, elsewhere)

    def expected_mask(self, shard: UpdateShard, knowledge: Knowledge, f: int) -> Tensor:
        """(S,) bool, U."""
        if self.knowledge == "previous_round":
            assert knowledge.last_step is not None
            return knowledge.last_step != 0
        mask = self.rule_mask or knowledge.mask
        if self.knowledge == "oracle":
            return mask_of_finite(mask, shard)
        rehearsed = knowledge.rehearsed
        if self.knowledge == "colluders":
            assert rehearsed is not None
            return mask_of_finite(mask, rehearsed)
        rows = torch.cat([bucket[shard.malicious] for bucket in shard.buckets], dim=1)
        if rehearsed is not None:  # None in a round of malicious clients alone
            simulated = rehearsed.split(f)[1] if self.others == "benign" else rehearsed
            rows = torch.cat([simulated.values, rows])
        return mask_of_finite(mask, shard.with_rows(rows))


def mask_of_finite(mask: Callable[[UpdateShard], Tensor], shard: UpdateShard) -> Tensor:
    """(S,) bool, the mask of those updates that the server does not exclude; nothing passes if there are none."""
    finite = shard.finite_rows()
    if not finite.any():
        return torch.zeros(shard.width, dtype=torch.bool, device=finite.device)
    seen, _ = shard.split(shard.num_clients)  # not the round's own shard, which keeps all rows
    if not finite.all():
        seen.keep(finite)
    return mask(seen)
