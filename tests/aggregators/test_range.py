"""Every rule on numbers at either end of float32: what it makes of finite updates is finite, and lies among them."""

import inspect

import pytest
import torch
from rule_oracles import RULES, SMALLEST, assert_is, with_models
from torch import Tensor

from fl_lightning import aggregators
from fl_lightning.aggregators import Aggregator, FLTrust, Median
from fl_lightning.updates import UpdateShard
from fl_lightning.updates.overflow import MOST

N, D = 20, 37
NEEDED = {"rule": Median(), "num_malicious": 3}
"""Arguments without a default, and what cohorts tell otherwise."""

BEYOND = {"WeakDP", "FLAME", "SignSGD", "RLR"}
"""Add noise, have steps of one length, or turn the mean: finite, but not among the updates."""


def kinds() -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(0)
    plain = torch.randn(N, D, generator=draws)
    loud = (2 * torch.rand(N, D, generator=draws) - 1) * MOST
    signs = torch.ones(N, 1)
    signs[::2] = -1
    return {
        "all": torch.full((N, D), 3e38),
        "all down": torch.full((N, D), -3e38),
        "the largest": torch.full((N, D), MOST),
        "two sides": signs.expand(N, D) * 3e38,
        "five against fifteen": torch.cat([torch.full((15, D), 3e38), torch.full((5, D), -3e38)]),
        "one": torch.cat([plain[1:], torch.full((1, D), 3e38)]),
        "random": loud,
        "some coordinates": torch.where(torch.arange(D) % 9 == 0, loud.abs(), plain),
        "smallest": torch.full((N, D), SMALLEST),
        "denormal": plain * 1e-42,
    }


def made(name: str) -> Aggregator:
    """The rule with its defaults."""
    rule = getattr(aggregators, name)
    return rule(**{key: value for key, value in NEEDED.items() if key in inspect.signature(rule).parameters})


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("name", sorted(set(aggregators.__all__) - {"Aggregator"}))
def test_finite_updates_give_finite_aggregates(name: str, kind: str) -> None:
    updates, weights = kinds()[kind], torch.arange(1.0, N + 1)
    rule = made(name)
    shard = with_models(UpdateShard.from_updates(updates, weights))
    shard.root = updates.double().mean(0).float() if isinstance(rule, FLTrust) else None
    shard.broadcast = torch.linspace(-1, 2, D)
    for result in (rule(shard), rule.aggregate_buffers(shard)):
        assert result.isfinite().all()
        if name not in BEYOND:
            slack = (N + 3) * 2.0**-23 * updates.double().abs().amax(0)
            low, high = updates.double().amin(0).clamp(max=0), updates.double().amax(0).clamp(min=0)
            assert ((result >= low - slack) & (result <= high + slack)).all()
    assert all(kept.isfinite().all() for kept in rule.memory.values())


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("name", [name for name in RULES if "all options" not in name])  # rescaling leaves the range in earnest
def test_rule_is_its_oracle_there_too(name: str, kind: str) -> None:
    rule, oracle, buffers = RULES[name]
    updates, weights = kinds()[kind], torch.arange(1.0, N + 1)
    shard = UpdateShard.from_updates(updates, weights)
    assert_is(rule(shard), oracle(updates.numpy(), weights.tolist(), [D]))
    assert_is(rule.aggregate_buffers(shard), buffers(updates.numpy(), weights.tolist(), [D]))
