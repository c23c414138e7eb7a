"""Clients that a rule turned away, counted by what they were: of a run as it goes, and of its record."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import ArrayLike

DETECTION_FILE = "detection.jsonl"
"""In a run's folder: a line per round, with the counts of `Detections`."""


@dataclass(frozen=True)
class Detections:
    """Clients of one round, or of several, by what they were and what the rule made of them.

    Attributes:
        rounds: that are counted here.
        malicious: malicious clients that reported.
        benign: benign ones.
        away_malicious: malicious clients with verdict 0.
        away_benign: benign ones.
        below_malicious: malicious clients below the threshold, those with verdict 0 included.
        below_benign: benign ones.
        pairs: of a malicious and a benign client of the same round.
        pairs_told: those of which the malicious one has the lower verdict; a tie is half a pair.
    """

    rounds: int = 0
    malicious: int = 0
    benign: int = 0
    away_malicious: int = 0
    away_benign: int = 0
    below_malicious: int = 0
    below_benign: int = 0
    pairs: int = 0
    pairs_told: float = 0.0

    def __add__(self, other: Detections) -> Detections:
        return Detections(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def rates(self) -> dict[str, float]:
        """`tpr`, `fpr`, `tpr_below`, `fpr_below`, `auroc`, as far as there is somebody to divide by."""
        parts = {
            "tpr": (self.away_malicious, self.malicious),
            "fpr": (self.away_benign, self.benign),
            "tpr_below": (self.below_malicious, self.malicious),
            "fpr_below": (self.below_benign, self.benign),
            "auroc": (self.pairs_told, self.pairs),
        }
        return {name: number / of for name, (number, of) in parts.items() if of}


def detect(verdict: ArrayLike, malicious: ArrayLike, threshold: float) -> Detections:
    """Count the clients of a round.

    Args:
        verdict: (N,) float32 in [0, 1], on the CPU.
        malicious: (N,) bool.
        threshold: share of the mean verdict.

    Example:
        >>> found = detect([0.0, 0.2, 1.0, 1.0], [True, True, False, False], 0.5)
        >>> found.rates
        {'tpr': 0.5, 'fpr': 0.0, 'tpr_below': 1.0, 'fpr_below': 0.0, 'auroc': 1.0}
    """
    score, bad = np.asarray(verdict, dtype=np.float64), np.asarray(malicious, dtype=bool)
    away = score == 0
    below = away | (score < threshold * score.mean())
    lower, higher = score[bad, None], score[~bad]
    told = int((lower < higher).sum()) + int((lower == higher).sum()) / 2
    counts = [int((flags & group).sum()) for flags in (np.ones_like(away), away, below) for group in (bad, ~bad)]
    return Detections(1, *counts, pairs=lower.size * higher.size, pairs_told=told)
