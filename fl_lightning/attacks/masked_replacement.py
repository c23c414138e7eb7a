"""Model replacement through a mask of votes and a trimmed mean: what to send so that the aggregate is the attacker's update.

An attack on the rule of X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated
Backdoor Attacks", AISTATS 2024, https://arxiv.org/abs/2210.01834, by attackers who know its tau and alpha. It has no paper: it
asks what that rule leaves possible, where the paper's own adaptive attack (Appendix C.1) asks what its mask shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from fl_lightning.attacks.base import Attack, Attacker, Knowledge
from fl_lightning.attacks.crafted import shadow_clients, uniform
from fl_lightning.data.base import Samples
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.moments import moments
from fl_lightning.updates.order_statistics import trim_count, trimmed_mean_within_range
from fl_lightning.updates.shard import UpdateShard

BenignKnowledge = Literal["colluders", "shadow", "oracle"]

COLUMNS = 2**15
"""Coordinates that are worked on at a time, in float64."""

VOTE = 1e-12
"""What counts as a vote and moves nothing."""


class MaskedReplacement(Attack):
    """All f malicious clients send, coordinate by coordinate, what brings the expected aggregate nearest to their target.

    The target is t = p + (boost - 1) (p - m), with p the mean of the malicious updates, after attacks that poison data, and m
    that of what the same clients would have sent honestly. Be A(v) what the server makes of f entries v beside the N - f benign
    ones: 0 where the mask is closed by those votes, else the trimmed mean T(v), which never falls in v and stands still beyond
    the entries that trimming keeps. Then v is the best of three by |A(v) - t|: the v > 0 and the v < 0 with T(v) nearest to t,
    and 0, no vote. So attackers

    - open the mask with their f votes where benign ones alone would not, if benign clients move the right way;
    - close it where benign clients would move the wrong way by a majority that does not outweigh f votes against;
    - elsewhere move the trimmed mean as far as it goes, and send no more than that takes.

    Benign entries are not seen but expected, see `knowledge`. Each malicious client trains twice. Put it after the attacks that
    poison data, and last. Against a rule without mask it is model replacement through a trimmed mean.

    Args:
        alpha: share that the server trims from each tail, in [0, .5); b = ceil(alpha N).
        boost: how far the target goes from the honest update towards the malicious one and beyond, more than 0; 1 is
            replacement. A server that lets through a part only is pushed there the sooner, at the cost of accuracy.
        margin: where T(v) does not reach the target, how far beyond the expected bound v lies, in widths of the range within
            which v counts; at least 0. 0 is just inside, 1 allows for a bound that is known badly.
        knowledge: how the benign entries are known.
            `colluders`: as N - f quantiles of a normal distribution with the mean and standard deviation of what the f
            malicious clients would have sent honestly. A single one has no deviation, and goes by votes alone.
            `shadow`: as N - f simulated clients that train on random parts of the attackers' pooled clean data, which costs
            as many trainings.
            `oracle`: they are seen. Beyond the threat model; an upper bound.
        rule: a rule whose mask is meant, for servers whose own has none; the server's where left out.

    Attackers know tau through the rule's mask, which they evaluate on the entries above; alpha is not handed to them, and may
    be wrong. That v stays near the range which trimming keeps is for the looks: a larger one is as strong against this rule,
    but seen by others.

    Example:
        >>> updates = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, -3.0], [9.0, -9.0]])
        >>> shard = UpdateShard.from_updates(updates, malicious=torch.tensor([False, False, False, True]))
        >>> opens = lambda s: s.values.sign().sum(0).abs() > 2
        >>> attack = MaskedReplacement(alpha=0.25, boost=1.0, knowledge="oracle", margin=0.0)
        >>> attack.corrupt(shard, Knowledge(opens, rehearsed=UpdateShard.from_updates(torch.zeros(1, 2))))
        >>> shard.values[3]
        tensor([ 3., -3.])
    """

    def __init__(
        self,
        *,
        alpha: float = 0.25,
        boost: float = 10.0,
        margin: float = 1.0,
        knowledge: BenignKnowledge = "colluders",
        rule: nn.Module | None = None,
    ) -> None:
        if not 0 <= alpha < 0.5:
            raise ConfigurationError(f"MaskedReplacement.alpha must lie in [0, .5), got {alpha}: a share of each tail")
        if not 0 < boost < math.inf:
            raise ConfigurationError(f"MaskedReplacement.boost must be more than 0 and finite, got {boost}")
        if not 0 <= margin < math.inf:
            raise ConfigurationError(f"MaskedReplacement.margin must be at least 0 and finite, got {margin}")
        if knowledge not in get_args(BenignKnowledge):
            raise ConfigurationError(
                f"MaskedReplacement.knowledge must be one of {', '.join(get_args(BenignKnowledge))}, got {knowledge!r}"
            )
        if rule is not None and (isinstance(rule, type) or not callable(getattr(rule, "mask", None))):
            raise ConfigurationError(f"MaskedReplacement.rule must be a server rule, got {type(rule).__name__}")
        self.alpha = alpha
        self.boost = boost
        self.margin = margin
        self.knowledge = knowledge
        self.rule_mask = None if rule is None else cast("Callable[[UpdateShard], Tensor]", rule.mask)

    def rehearse(self, datasets: Sequence[Samples], attackers: Sequence[Attacker], num_benign: int) -> list[Samples]:
        """Each attacker's clean data, and after them those of the simulated clients."""
        return [*datasets, *(shadow_clients(datasets, attackers, num_benign) if self.knowledge == "shadow" else [])]

    def corrupt(self, shard: UpdateShard, knowledge: Knowledge) -> None:
        f = int(shard.malicious.sum())
        assert knowledge.rehearsed is not None
        own, shadow = knowledge.rehearsed.split(f)
        poisoned, honest = shard.malicious & shard.finite_rows(), own.finite_rows()
        benign = self.expected_benign(
            {"colluders": own, "shadow": shadow, "oracle": shard}[self.knowledge], shard.num_clients - f
        )
        if benign is None or not poisoned.any() or not honest.any():
            return
        b = min(trim_count(len(benign) + f, self.alpha), (len(benign) + f - 1) // 2)
        everyone = shard.with_rows(torch.cat([benign, benign.new_zeros(f, benign.shape[1])]))
        opens = {}
        for vote in (1.0, -1.0, 0.0):
            everyone.buckets[0][len(benign) :] = vote
            opens[vote] = (self.rule_mask or knowledge.mask)(everyone).clone()
        malicious = shard.combine(uniform(poisoned))
        target = malicious + (self.boost - 1) * (malicious - own.combine(uniform(honest)))
        sent = torch.empty_like(target)
        for first in range(0, shard.width, COLUMNS):
            at = slice(first, first + COLUMNS)
            entries = benign[:, at].double()
            wanted = target[at].double()
            value = replacement(entries, wanted, f, b, self.margin)
            sent[at] = nearest(entries, wanted, value, {vote: mask[at] for vote, mask in opens.items()}, f, b).float()
        shard.rewrite(shard.malicious, lambda _, vector: vector, sent)

    def expected_benign(self, known: UpdateShard, count: int) -> Tensor | None:
        """(H, S) float32, what benign clients are taken to send, columns in ascending order; None where nothing is known.

        Args:
            known: the updates that tell of it: the attackers' own honest ones, or one for each benign client.
            count: benign clients in the round.
        """
        rows = known.finite_rows() & ~known.malicious
        if not count or not rows.any():
            return None
        if self.knowledge != "colluders":
            return torch.cat([bucket[rows].sort(dim=0).values for _, bucket in known.columns()], dim=1)
        normal = NormalDist()
        scores = [normal.inv_cdf((i + 0.5) / count) for i in range(count)]
        benign = torch.empty(count, known.width, device=known.weights.device)
        for columns, bucket in known.columns():
            mean, variance = moments([bucket[i] for i in rows.nonzero().flatten().tolist()])
            deviation = variance.sqrt()
            for row, score in zip(benign, scores, strict=True):
                row[columns] = (mean + score * deviation).float()
        return benign


def replacement(benign: Tensor, target: Tensor, f: int, b: int, margin: float = 0.0) -> Tensor:
    """The v with T(v) nearest to the target, where T(v) is the trimmed mean of f entries v and the benign ones.

    T is linear between benign entries: with j of them below v, c_j of the f lie among the ranks b+1 .. N-b, and
    (N - 2b) T(v) is c_j v and the sum of the benign ones that are kept. From the least v that counts on, every stretch adds the
    part of its length that the target takes of it.

    Args:
        benign: (H, c) float64, each column in ascending order, H at least 1.
        target: (c,) float64.
        f: malicious entries, at least 1.
        b: entries trimmed from each tail of N = H + f, with N - 2b >= 1.
        margin: see `MaskedReplacement`.

    Returns:
        (c,) float64, within [benign[b-f], benign[N-b-1]] for f <= b, without bounds for f > b.

    Example:
        >>> benign = torch.tensor([[0.0], [2.0], [4.0], [6.0]]).double()
        >>> [replacement(benign, torch.tensor([t]).double(), f=1, b=1).item() for t in (-9.0, 3.0, 3.5, 9.0)]
        [0.0, 3.0, 4.5, 6.0]
    """
    h = len(benign)
    n = h + f
    prefix = [torch.zeros_like(target)]
    for row in benign:
        prefix.append(prefix[-1] + row)
    value = benign[max(0, b - f)].clone()
    for j in range(max(0, b - f + 1), min(h, n - b - 1) + 1):
        counted = min(j + f, n - b) - max(j, b)
        kept = prefix[max(b, min(j, n - b))] - prefix[b] + prefix[max(j, b - f, n - b - f)] - prefix[max(j, b - f)]
        start = benign[max(0, j - 1)]
        step = ((n - 2 * b) * target - kept) / counted - start
        if j > 0:
            step = step.clamp(min=0)
        if j < h:
            step = torch.minimum(step, benign[j] - start)
        value += step
    if f <= b and margin:
        low, high = benign[b - f], benign[n - b - 1]
        beyond = margin * (high - low)
        value = torch.where(value >= high, value + beyond, torch.where(value <= low, value - beyond, value))
    return value


def nearest(benign: Tensor, target: Tensor, value: Tensor, opens: dict[float, Tensor], f: int, b: int) -> Tensor:
    """(c,), of a positive vote, a negative one and none, what brings the aggregate nearest to the target.

    Of equals the vote with the target's sign is taken.

    Args:
        benign, target, value: as in `replacement`.
        opens: for each vote, 1, -1 and 0, whether the mask lets the coordinate move, (c,) bool.
        f: malicious entries.
        b: entries trimmed from each tail.
    """
    candidates = {1.0: value.clamp(min=VOTE), -1.0: value.clamp(max=-VOTE), 0.0: torch.zeros_like(value)}
    errors = {}
    for vote, sent in candidates.items():
        aggregate = trimmed_mean_within_range(torch.cat([benign, sent.expand(f, -1)]), b)
        errors[vote] = (torch.where(opens[vote], aggregate, 0.0) - target).abs()
    upwards = (errors[1.0] < errors[-1.0]) | ((errors[1.0] == errors[-1.0]) & (target >= 0))
    best, error = torch.where(upwards, candidates[1.0], candidates[-1.0]), torch.minimum(errors[1.0], errors[-1.0])
    return torch.where(errors[0.0] < error, candidates[0.0], best)
