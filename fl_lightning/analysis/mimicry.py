"""Figure 5 and Appendix D.2: how few coordinates a backdoor needs, and how benign an update with these alone looks.

X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks",
AISTATS 2024, https://arxiv.org/abs/2210.01834, Figure 5 and Appendix D.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

LARGE = 0.01
"""Magnitude above which the paper counts entries: 747 of 11,689,512 there."""


@dataclass(frozen=True)
class Magnitudes:
    """Figure 5: the magnitudes of a malicious update.

    Attributes:
        edges: (bins + 1,) float64, increasing; powers of ten, evenly spaced in the exponent.
        counts: (bins,) int64; entries below the first edge or above the last are in the outermost bins.
        zeros: entries that are exactly zero, in no bin.
        large: entries above .01.
        total: d.
    """

    edges: np.ndarray
    counts: np.ndarray
    zeros: int
    large: int
    total: int


def magnitudes(update: Tensor, bins: int = 60) -> Magnitudes:
    """The histogram of |g'_k| of an update (d,) float32.

    Example:
        >>> import torch
        >>> found = magnitudes(torch.tensor([0.0, 0.5, -0.02, 1e-5]))
        >>> found.large, found.zeros, int(found.counts.sum())
        (2, 1, 3)
    """
    sizes = update.abs().cpu().double().numpy()
    edges = np.logspace(-9, 1, bins + 1)
    present = np.clip(sizes[sizes > 0], edges[0], edges[-1])
    return Magnitudes(
        edges, np.histogram(present, edges)[0], int((sizes == 0).sum()), int((update.abs() > LARGE).sum()), len(sizes)
    )


@dataclass(frozen=True)
class Mimic:
    """One mimicking update.

    Attributes:
        kept: coordinates that are malicious.
        cosine: between it and the benign update, in [-1, 1]; NaN if one of them is zero.
        loss_before: backdoor loss at the global weights, under the target label.
        loss_full: the same after the malicious update.
        loss_mimic: after the mimicking one.
        slow_down: 1 - (loss_before - loss_mimic) / (loss_before - loss_full); NaN if the malicious update changes nothing.
    """

    kept: int
    cosine: float
    loss_before: float
    loss_full: float
    loss_mimic: float
    slow_down: float


def mimic(malicious: Tensor, benign: Tensor, kept: int) -> Tensor:
    """g~_k = g'_k on the `kept` coordinates with the largest |g'_k|, of equal ones the lower ones; g_k elsewhere.

    Args:
        malicious: (d,) float32, g'.
        benign: (d,) float32, g.
        kept: at least 0; all where there are fewer.

    Example:
        >>> import torch
        >>> mimic(torch.tensor([1.0, -5.0]), torch.tensor([0.2, 0.3]), kept=1)
        tensor([ 0.2000, -5.0000])
    """
    largest = malicious.abs().argsort(descending=True, stable=True)[:kept]
    mixed = benign.clone()
    mixed[largest] = malicious[largest]
    return mixed


def cosine(one: Tensor, other: Tensor) -> float:
    """The cosine between two vectors (d,), in float64; NaN if one of them is zero."""
    one, other = one.double(), other.double()
    norms = float(one.norm() * other.norm())
    return float(one @ other) / norms if norms else float("nan")


def mimicry(
    malicious: Tensor, benign: Tensor, loss: Callable[[Tensor], float], weights: Tensor, counts: Sequence[int]
) -> list[Mimic]:
    """How benign mimicking updates look, and how much of the malicious one's effect they keep.

    Args:
        malicious: (d,) float32, old minus new.
        benign: (d,) float32 likewise.
        loss: of the backdoor samples under the target label, at weights (d,).
        weights: (d,) float32, the global ones.
        counts: how many coordinates to keep; cut off at d, each once.
    """
    before, full = loss(weights), loss(weights - malicious)
    found = []
    for kept in sorted({min(count, len(malicious)) for count in counts}):
        mixed = mimic(malicious, benign, kept)
        after = loss(weights - mixed)
        slow_down = 1 - (before - after) / (before - full) if before != full else float("nan")
        found.append(Mimic(kept, cosine(benign, mixed), before, full, after, slow_down))
    return found
