"""What the tests of rules that keep some clients and turn others away share."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_lightning.aggregators import Aggregator
from fl_lightning.updates import UpdateShard


def judged(rule: Aggregator, updates: Tensor, weights: Tensor | None = None, broadcast: Tensor | None = None) -> list[float]:
    """The verdict."""
    shard = UpdateShard.from_updates(updates, weights)
    shard.broadcast = broadcast
    rule(shard)
    assert shard.verdict is not None
    return shard.verdict.tolist()


def lower_middle(values: list[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]


def middle(values: list[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def deviations_from_median(values: list[float]) -> list[float]:
    """|x - median| / standard deviation, one by one; 0 where that is 0."""
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return [abs(value - middle(values)) / deviation if deviation > 1e-12 * max(map(abs, values)) else 0.0 for value in values]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """0 with a vector of zeros."""
    lengths = math.sqrt(math.fsum(a**2)) * math.sqrt(math.fsum(b**2))
    return math.fsum(a * b) / lengths if lengths else 0.0


def grouped(n: int, f: int, d: int = 120, seed: int = 0) -> Tensor:
    """n updates around one direction, the first f of them around another, longer and closer together."""
    draws = torch.Generator().manual_seed(seed)
    updates = torch.randn(n, d, generator=draws) + torch.randn(d, generator=draws)
    updates[:f] = 2 * (0.3 * torch.randn(f, d, generator=draws) + torch.randn(d, generator=draws))
    return updates


def assert_equivariant(rule: Aggregator, updates: Tensor, order: list[int], power: int) -> None:
    """Odd, of degree 1, and the same whatever the order of clients."""

    def result(given: Tensor) -> Tensor:
        rule.forget()
        shard = UpdateShard.from_updates(given)
        shard.broadcast = torch.linspace(-1, 2, given.shape[1])
        return rule(shard)

    found = result(updates)
    assert torch.equal(result(-updates), -found)
    assert torch.equal(result(updates * 2.0**power), found * 2.0**power)
    reach = updates.abs().amax().item()
    permuted = result(updates[[i for i in order if i < len(updates)]])
    assert permuted.tolist() == pytest.approx(found.tolist(), abs=(len(updates) + 3) * 2.0**-23 * reach)
