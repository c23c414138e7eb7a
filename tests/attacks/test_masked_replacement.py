"""Model replacement through mask and trimming: what is sent, against all that could be, and what the server makes of it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from rows import INF, NAN, attacked, bits, drawn, everything_passes, last
from torch import Tensor

from fl_lightning.aggregators import Invariant, TrimmedMean
from fl_lightning.attacks import Attacker, MaskedReplacement
from fl_lightning.attacks.masked_replacement import replacement
from fl_lightning.data import TensorSamples
from fl_lightning.errors import ConfigurationError

SHAPES = [(8, 2, 2), (8, 2, 3), (7, 2, 4), (16, 4, 5), (3, 1, 1), (6, 3, 2), (2, 1, 0), (5, 1, 0)]
"""H, f, b; f above b, and nothing trimmed, too."""


def mean_without_tails(column: np.ndarray, b: int) -> float:
    return float(np.sort(column)[b : len(column) - b].mean())


def invert_slowly(benign: np.ndarray, target: float, f: int, b: int) -> float:
    """v with T(v) nearest to the target, by halving between bounds far outside."""
    low, high = -1e4, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        if mean_without_tails(np.append(benign, [middle] * f), b) < target:
            low = middle
        else:
            high = middle
    return high


@pytest.mark.parametrize(("h", "f", "b"), SHAPES)
def test_the_trimmed_mean_of_what_is_sent_is_the_target_where_it_can_be(h, f, b):
    benign = drawn(h, 40, seed=h).double().sort(dim=0).values
    target = drawn(1, 40, seed=f)[0].double() * 3
    found = replacement(benign, target, f, b)
    for column, t, v in zip(benign.numpy().T, target.tolist(), found.tolist(), strict=True):
        slow = invert_slowly(column, t, f, b)
        reached = mean_without_tails(np.append(column, [v] * f), b)
        assert reached == pytest.approx(mean_without_tails(np.append(column, [slow] * f), b), abs=1e-9)
        if abs(slow) < 1e3:  # T rises there
            assert v == pytest.approx(slow, abs=1e-9)
        else:  # just inside: any more counts no more
            assert v in (column[b - f], column[h + f - b - 1])


def test_by_hand():
    benign = torch.tensor([[0.0], [2.0], [4.0], [6.0]]).double()
    # of 0 2 4 6 and v trimming leaves 2 4 and v within [0, 6]: T = 2 + v/3 for v in [2, 4], (0 2 4)/3 to (2 4 6)/3 outside
    for target, value in ((3.0, 3.0), (8 / 3, 2.0), (2.0, 0.0), (-7.0, 0.0), (4.0, 6.0), (5.0, 6.0)):
        assert replacement(benign, torch.tensor([target]).double(), 1, 1).item() == pytest.approx(value)
    assert replacement(benign, torch.tensor([5.0]).double(), 1, 1, margin=0.5).item() == 9.0
    assert replacement(benign, torch.tensor([-5.0]).double(), 1, 1, margin=0.5).item() == -3.0
    assert replacement(benign, torch.tensor([3.0]).double(), 1, 1, margin=0.5).item() == pytest.approx(3.0)


def test_votes_by_hand():
    """Five benign clients and two malicious ones, none trimmed; the mask asks for |sum of signs| > .4 * 7, so for 3."""
    benign = torch.tensor(
        [
            [1.0, 1.0, 1.0, 1.0],
            [1.0, 1.0, 1.0, 1.0],
            [1.0, 1.0, 1.0, 1.0],
            [-1.0, 1.0, -1.0, 1.0],
            [-1.0, -1.0, -1.0, 1.0],
        ]
    )
    wanted = torch.tensor([[3.0, -3.0, -3.0, -3.0]]).expand(2, -1)
    after = attacked(
        MaskedReplacement(alpha=0.0, boost=1.0, knowledge="oracle"),
        torch.cat([benign, wanted]),
        last(7, 2),
        mask=Invariant(tau=0.4, alpha=0.0).mask,
        rehearsed=torch.zeros(2, 4),
    )
    sent = after[-1].tolist()
    # 3 to 2 passes thanks to them, and 10 makes the mean 3; 4 to 1 and 3 to 2 are closed by votes against; 5 to 0 passes as
    # 5 to 2, with a mean of -3
    assert sent[0] == pytest.approx(10.0)
    assert sent[1] < 0
    assert sent[2] < 0
    assert sent[3] == pytest.approx(-13.0)
    made = Invariant(tau=0.4, alpha=0.0)(after)
    torch.testing.assert_close(made, torch.tensor([3.0, 0.0, 0.0, -3.0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("tau", "alpha"), [(0.2, 0.25), (0.4, 0.2), (0.6, 0.4), (0.0, 0.1)])
def test_no_other_value_brings_the_aggregate_nearer_to_the_target(tau, alpha):
    """With the benign rows in sight, against a search over signs and sizes."""
    n, f, d = 10, 2, 400
    updates, rule = 0.7 * drawn(1, d, seed=3) + drawn(n, d), Invariant(tau=tau, alpha=alpha)
    honest, malicious = drawn(f, d, seed=8), last(n, f)
    attack = MaskedReplacement(alpha=alpha, boost=2.0, knowledge="oracle")
    after = attacked(attack, updates, malicious, mask=rule.mask, rehearsed=honest)
    target = 2 * updates[malicious].mean(0) - honest.mean(0)
    error = (rule(after) - target).abs()
    least = torch.full((d,), INF)
    tried = after.clone()
    for value in [*np.linspace(-9, 9, 181).tolist(), 1e-9, -1e-9]:
        tried[malicious] = value
        least = torch.minimum(least, (rule(tried) - target).abs())
    assert (error <= least + 1e-5).all()
    assert (error < (rule(updates) - target).abs() - 1e-3).sum() > d / 6  # than what they found


def test_without_mask_it_replaces_the_model_through_a_trimmed_mean():
    n, f, d = 9, 2, 300
    updates, honest = drawn(n, d), drawn(f, d, seed=1)
    updates[last(n, f)] = 0.05 * drawn(1, d, seed=2)
    attack = MaskedReplacement(alpha=0.3, boost=1.0, knowledge="oracle")
    after = attacked(attack, updates, last(n, f), rehearsed=honest)
    made = TrimmedMean(alpha=0.3)(after)
    reached = (made - updates[-1]).abs() < 1e-5
    assert reached.float().mean() > 0.3  # the others lie beyond what trimming lets through
    assert all(bits(row) == bits(after[-1]) for row in after[-f:])


def test_what_colluders_expect_is_a_normal_distribution():
    """The true N - f benign rows are normal quantiles here, so that it is the oracle's attack, and own updates tell them."""
    n, f, d = 12, 4, 200
    own = drawn(f, d, seed=4)
    mean, deviation = own.double().mean(0), own.double().std(0)
    scores = torch.special.ndtri((torch.arange(n - f) + 0.5).double() / (n - f))
    benign = (mean + scores[:, None] * deviation).float()
    updates, mask = torch.cat([benign, drawn(f, d, seed=5)]), Invariant(tau=0.4).mask
    sent = [
        attacked(MaskedReplacement(knowledge=level), updates, last(n, f), rehearsed=own, mask=mask)[-1]
        for level in ("colluders", "oracle")
    ]
    torch.testing.assert_close(sent[0], sent[1], rtol=1e-4, atol=1e-4)


def test_margin_leaves_alone_what_trimming_keeps_and_exceeds_the_bound_elsewhere():
    n, f, d = 10, 2, 300
    updates, honest = drawn(n, d), drawn(f, d, seed=1)
    near, far = (
        attacked(MaskedReplacement(alpha=0.3, boost=1.0, margin=m, knowledge="oracle"), updates, last(n, f), rehearsed=honest)[
            -1
        ]
        for m in (0.0, 1.0)
    )
    assert (far.abs() >= near.abs() - 1e-6).float().mean() > 0.9
    assert 0.1 < (far == near).float().mean() < 0.9
    aggregates = [TrimmedMean(alpha=0.3)(torch.cat([updates[:-f], sent.expand(f, -1)])) for sent in (near, far)]
    torch.testing.assert_close(aggregates[0], aggregates[1])


@pytest.mark.parametrize("level", ["colluders", "shadow", "oracle"])
def test_hostile_values(level):
    attack = MaskedReplacement(knowledge=level)
    updates, honest = drawn(6, 20), drawn(6, 20, seed=1)
    updates[0], updates[5, 3], honest[1, 2], honest[5] = INF, NAN, NAN, 1e38
    after = attacked(attack, updates, last(6, 2), rehearsed=honest)
    assert after[-2:].isfinite().all()
    # Nothing to go by: they send what they found.
    for rows, rehearsed in ((torch.full((6, 20), NAN), honest), (updates, torch.full((6, 20), INF))):
        assert bits(attacked(attack, rows, last(6, 2), rehearsed=rehearsed)) == bits(rows)
    alone = attacked(attack, updates[:2], last(2, 2), rehearsed=honest[:2])
    assert bits(alone) == bits(updates[:2])


def test_rehearsals():
    data = [TensorSamples(torch.randn(n, 2), torch.zeros(n).long()) for n in (4, 6)]
    attackers = [Attacker(client=i, seed=0, pool=data[0]) for i in range(2)]
    assert MaskedReplacement().rehearse(data, attackers, 8) == data
    assert MaskedReplacement(knowledge="oracle").rehearse(data, attackers, 8) == data
    shadow = MaskedReplacement(knowledge="shadow").rehearse(data, attackers, 8)
    assert shadow[:2] == data
    assert [len(of) for of in shadow[2:]] == [5] * 8


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"alpha": 0.5}, r"MaskedReplacement\.alpha must lie in \[0, \.5\), got 0\.5"),
        ({"alpha": NAN}, r"MaskedReplacement\.alpha must lie"),
        ({"boost": 0.0}, r"MaskedReplacement\.boost must be more than 0 and finite, got 0\.0"),
        ({"margin": -1.0}, r"MaskedReplacement\.margin must be at least 0 and finite, got -1\.0"),
        ({"margin": math.inf}, r"MaskedReplacement\.margin must be"),
        ({"knowledge": "all"}, r"MaskedReplacement\.knowledge must be one of colluders, shadow, oracle, got 'all'"),
        ({"rule": Invariant}, r"MaskedReplacement\.rule must be a server rule, got "),
        ({"rule": torch.nn.Identity()}, r"MaskedReplacement\.rule must be a server rule, got Identity"),
    ],
)
def test_bad_settings(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        MaskedReplacement(**given)


def test_a_rule_of_the_attackers_own_is_the_mask_that_is_meant():
    updates: Tensor = drawn(10, 100)
    rule = Invariant(tau=0.6)
    own, handed = (
        attacked(attack, updates, last(10, 2), rehearsed=drawn(2, 100, seed=1), mask=mask)
        for attack, mask in (
            (MaskedReplacement(rule=rule), everything_passes),
            (MaskedReplacement(), rule.mask),
        )
    )
    assert bits(own) == bits(handed)
