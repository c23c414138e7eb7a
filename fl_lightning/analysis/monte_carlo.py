"""Theorem 10 by simulation: signs are drawn, attackers look at them and choose theirs, and the rule itself aggregates.

X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks",
AISTATS 2024, https://arxiv.org/abs/2210.01834, Theorem 10.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor

from fl_lightning.aggregators import Invariant
from fl_lightning.analysis.theory import Setting, check_probability
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator

HUGE = 1000.0
"""Magnitude of the attackers' entries; benign ones are standard normal."""


@dataclass(frozen=True)
class Share:
    """How often something happened, and where its probability lies by the exact interval of Clopper and Pearson.

    Attributes:
        value: in [0, 1].
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Simulated:
    """Shares of the simulated coordinates.

    Attributes:
        benign: the benign sign comes out whatever attackers do: what p- counts.
        malicious: attackers who know all signs and all orders of magnitude can bring out the other sign: what p+ counts.
        opposed_benign: the rule's output has the benign sign when all attackers send -1000.
        opposed_malicious: the rule's output has the other sign then.
    """

    benign: Share
    malicious: Share
    opposed_benign: Share
    opposed_malicious: Share


def simulate(setting: Setting, p: float, *, trials: int = 100_000, seed: int = 0, confidence: float = 0.999) -> Simulated:
    """Draw benign signs, flipped with probability p each, and try every division of the attackers between the two sides.

    Args:
        setting: the round and the rule.
        p: in [0, 1].
        trials: coordinates, at least 1.
        seed: of the draws.
        confidence: of the intervals, in (0, 1).

    Example:
        >>> simulate(Setting(20, 4, alpha=0.25, tau=0.2), 0.1, trials=1000).opposed_malicious.value < 0.02
        True
    """
    check_probability("p", p)
    if trials < 1:
        raise ConfigurationError(f"trials must be at least 1, got {trials}")
    if not 0 < confidence < 1:
        raise ConfigurationError(f"confidence must lie between 0 and 1, got {confidence}; 0.999 is usual")
    draws = generator(seed, "analysis: theorem 10")
    benign = torch.randn(setting.benign, trials, generator=draws).abs()  # (B, trials)
    benign *= torch.where(torch.rand(setting.benign, trials, generator=draws) < p, -1.0, 1.0)
    certain, possible = divisions(setting, (benign > 0).sum(0))
    rule = Invariant(tau=setting.tau, alpha=setting.alpha, inclusive=setting.inclusive)
    opposed = rule(torch.cat([benign, torch.full((setting.malicious, trials), -HUGE)]))

    def share(event: Tensor) -> Share:
        count = int(event.sum())
        interval = binomtest(count, trials).proportion_ci(confidence, method="exact")
        return Share(count / trials, float(interval.low), float(interval.high))

    return Simulated(share(certain), share(possible), share(opposed > 0), share(opposed < 0))


def divisions(setting: Setting, kept: Tensor) -> tuple[Tensor, Tensor]:
    """What attackers can make of benign votes, trying 0 to N' of them on the benign side.

    Args:
        kept: (n,) int64, benign clients with the benign sign.

    Returns:
        (n,) bool, whether the benign sign comes out in any case; (n,) bool, whether the other sign can come out, as it can
        once the mask passes and one entry of that sign survives trimming.
    """
    certain, possible = torch.ones_like(kept, dtype=torch.bool), torch.zeros_like(kept, dtype=torch.bool)
    for with_benign in range(setting.malicious + 1):
        positive = kept + with_benign
        negative = setting.clients - positive
        passes = (positive - negative).abs() >= setting.threshold
        survives = negative > setting.trimmed
        certain &= passes & ~survives
        possible |= passes & survives
    return certain, possible
