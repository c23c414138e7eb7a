"""What attackers learn from values that they planted: who was taken, and what to do otherwise next time.

H. Li, Q. Ye, H. Hu, J. Li, L. Wang, C. Fang, J. Shi, "3DFed: Adaptive and Extensible Framework for Covert Backdoor Attack in
Federated Learning", IEEE S&P 2023, https://github.com/haoyangliASTAPLE/3DFed.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

REJECTED, CLIPPED, ACCEPTED = "rejected", "clipped", "accepted"

NOTHING = 1e-5
"""A planted value of which less than this share has come into the model was rejected; below its negative, noise was added."""

ROUNDED = 1e-3
"""By which share the model may have moved too far as its weights are float32: that of 1 rounds by 6e-8 of a value of .001."""

CLIPPED_BELOW = 0.8
"""Of the largest share: a smaller one is of an update that was clipped."""

WEAK_DP_ALPHA = 0.1
SPREAD = 0.1
"""How far around an accepted group's alpha another group's is drawn."""


@dataclass
class Indicator:
    """A value that an attacker planted.

    Attributes:
        coordinate: where, among all d.
        value: of its update there.
        group: the sender's; -1 for a decoy.
    """

    coordinate: int
    value: float
    group: int


@dataclass
class Feedback:
    """What is known of the server, from round to round; the same on every rank.

    Attributes:
        planted: the last round's indicators.
        round_number: that round; -1 before the first.
        alphas: of each group.
        decoys: k, how many decoys are wanted.
        weak_dp: whether the server adds noise, after which nothing is read any more.
        fates: of the indicators that were read last: accepted, clipped or rejected.
    """

    planted: list[Indicator] = field(default_factory=list)
    round_number: int = -1
    alphas: list[float] = field(default_factory=list)
    decoys: int = 0
    weak_dp: bool = False
    fates: list[str] = field(default_factory=list)

    def learn(self, moved: Tensor, draws: torch.Generator) -> None:
        """Read what the model moved by at the planted coordinates ((m,), old minus new), and set alphas and decoys for next
        time.

        Where no back door was accepted there is a decoy more next time; each one accepted is one less. A group whose back door
        was accepted keeps its alpha; others draw around that of one of these, or anew if there is none.
        """
        shares = [float(step) / indicator.value for step, indicator in zip(moved, self.planted, strict=True)]
        if any(share > 1 + ROUNDED or share < -NOTHING for share in shares):
            self.weak_dp, self.fates = True, []
            return
        self.fates = fates(shares)
        accepted = [indicator for indicator, fate in zip(self.planted, self.fates, strict=True) if fate == ACCEPTED]
        groups = sorted({indicator.group for indicator in accepted if indicator.group >= 0})
        decoys = sum(indicator.group < 0 for indicator in accepted)
        self.decoys = max(0, self.decoys - decoys) + (0 if groups else 1)
        for group in range(len(self.alphas)):
            if not groups:
                self.alphas[group] = float(torch.rand((), generator=draws))
            elif group not in groups:
                chosen = groups[int(torch.randint(len(groups), (), generator=draws))]
                near = self.alphas[chosen] + SPREAD * float(torch.randn((), generator=draws))
                self.alphas[group] = min(1.0, max(0.0, near))

    def alpha(self, group: int, draws: torch.Generator) -> float:
        """A group's alpha, drawn from [0, 1] where it has none yet."""
        while len(self.alphas) <= group:
            self.alphas.append(float(torch.rand((), generator=draws)))
        return WEAK_DP_ALPHA if self.weak_dp else self.alphas[group]

    def as_dict(self) -> dict[str, Any]:
        """In plain numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Feedback:
        """Take back what `as_dict` gave."""
        feedback = cls(**copy.deepcopy(given))
        feedback.planted = [Indicator(**indicator) for indicator in given["planted"]]
        return feedback


def fates(shares: list[float]) -> list[str]:
    """What became of each update, by the share of its planted value that has come into the model.

    >>> fates([0.1, 0.02, 0.0])
    ['accepted', 'clipped', 'rejected']
    """
    most = max(shares, default=0.0)
    return [REJECTED if share <= NOTHING else CLIPPED if share <= CLIPPED_BELOW * most else ACCEPTED for share in shares]
