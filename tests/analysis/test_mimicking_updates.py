import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_lightning.analysis.mimicry import cosine, magnitudes, mimic, mimicry
from fl_lightning.attacks import Knowledge
from fl_lightning.attacks import Mimicry as MimicryAttack
from fl_lightning.updates import UpdateShard


def vectors(seed=0, d=400):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(d, generator=draws), torch.randn(d, generator=draws)


def test_keeping_all_or_nothing():
    malicious, benign = vectors()
    assert torch.equal(mimic(malicious, benign, 400), malicious)
    assert torch.equal(mimic(malicious, benign, 9999), malicious)
    assert torch.equal(mimic(malicious, benign, 0), benign)


def test_cosine_falls_with_the_kept_count():
    """On average over draws, as it does in expectation."""
    counts = [0, 10, 50, 100, 200, 400]
    means = [np.mean([cosine(vectors(seed)[1], mimic(*vectors(seed), kept)) for seed in range(20)]) for kept in counts]
    assert means[0] == pytest.approx(1.0)
    assert all(later < earlier for earlier, later in pairwise(means))


@given(st.integers(0, 1000), st.integers(0, 50))
def test_is_what_the_attack_reports(seed, kept):
    draws = torch.Generator().manual_seed(seed)
    malicious, benign = (torch.randint(-3, 4, (50,), generator=draws).float() for _ in range(2))  # with ties
    shard = UpdateShard.from_updates(malicious[None].clone(), malicious=torch.tensor([True]))
    honest = UpdateShard.from_updates(benign[None])
    MimicryAttack(kept=kept).corrupt(shard, Knowledge(lambda s: torch.ones(50, dtype=torch.bool), rehearsed=honest))
    assert torch.equal(shard.values[0], mimic(malicious, benign, kept))


def test_slow_down_by_hand():
    """A linear loss, of which the kept coordinate makes three quarters."""
    weights, malicious, benign = torch.zeros(2), torch.tensor([3.0, 1.0]), torch.tensor([0.0, 0.0])
    found = mimicry(malicious, benign, lambda w: 10.0 + float(w.sum()), weights, [1, 2, 7])
    assert [entry.kept for entry in found] == [1, 2]
    assert (found[0].loss_before, found[0].loss_full, found[0].loss_mimic) == (10.0, 6.0, 7.0)
    assert found[0].slow_down == pytest.approx(0.25)
    assert math.isnan(found[0].cosine)
    assert found[1].slow_down == 0.0
    assert math.isnan(mimicry(malicious, benign, lambda w: 1.0, weights, [1])[0].slow_down)


def test_histogram_counts_every_entry():
    update = torch.tensor([0.0, -0.0, 1e-12, 0.01, -0.0101, 5.0, 1e3])
    found = magnitudes(update, bins=10)
    assert (found.zeros, found.total, found.large) == (2, 7, 3)
    assert found.counts.sum() == 5
    assert found.counts[0] == 1
    assert found.counts[-1] == 2  # 5 and 1000, which is beyond the last edge
