"""The adaptive attack: how much is scaled, which coordinates are expected to pass, and what the others become."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from adaptive_oracle import LEVELS, RULE, TAU, by_hand, votes_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import INF, NAN, attacked, bits, drawn, everything_passes, last
from torch import Tensor

from fl_lightning.aggregators import AndMask, Bucketing, FedAvg, Invariant, MeanVarianceRatio
from fl_lightning.attacks import Adaptive, Attacker, Knowledge
from fl_lightning.data import TensorSamples
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import UpdateShard

OTHERS: list[Any] = ["keep", "zero", "benign"]


def round_of(n: int = 9, f: int = 3, d: int = 300) -> tuple[Tensor, Tensor]:
    """Updates that are partly alike, so that some coordinates pass, and the malicious ones among them."""
    malicious = torch.zeros(n, dtype=torch.bool)
    malicious[torch.arange(1, n, 2)[:f]] = True
    return drawn(1, d, seed=5) + drawn(n, d), malicious


# ---- how much --------------------------------------------------------------------------------------------------------


@st.composite
def malicious_update(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    d = draw(st.integers(1, 60))
    own = drawn(1, d, draw(st.integers(0, 99))) * 10 ** draw(st.floats(-8, 8))
    passing = torch.rand(d, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) < draw(st.floats(0, 1))
    return own, passing


@settings(deadline=None, max_examples=100)
@given(malicious_update(), st.sampled_from([1.0, 3.0, 1e6]))
def test_what_passes_is_as_long_as_the_whole_was_and_signs_stay(drawn_case, max_scale):
    own, passing = drawn_case
    attack = Adaptive(knowledge="oracle", max_scale=max_scale)
    (found,) = attacked(attack, own, last(1, 1), mask=lambda _: passing)
    assert torch.equal(found.sign(), own[0].sign())
    assert bits(found[~passing]) == bits(own[0][~passing])
    norm, inside = own.double().norm().item(), (own[0].double() * passing).norm().item()
    if norm <= max_scale * inside:
        assert (found.double() * passing).norm().item() == pytest.approx(norm, rel=1e-6)
    elif inside:
        assert (found.double() * passing).norm().item() == pytest.approx(max_scale * inside, rel=1e-6)
    torch.testing.assert_close(found, by_hand(own[0], passing, max_scale=max_scale), rtol=1e-6, atol=0)


@pytest.mark.parametrize("others", OTHERS)
def test_equals_its_definition(others):
    updates, malicious = round_of()
    honest = drawn(3, 300, seed=1)
    elsewhere = {"keep": None, "zero": torch.zeros(300), "benign": honest.double().mean(0)}[others]
    found = attacked(Adaptive(knowledge="oracle", others=others), updates, malicious, mask=RULE.mask, rehearsed=honest)[
        malicious
    ]
    passing = votes_by_hand(updates)
    assert 20 < passing.sum() < 280
    for row, own in zip(found, updates[malicious], strict=True):
        torch.testing.assert_close(row, by_hand(own, passing, elsewhere), rtol=1e-6, atol=1e-7)


def test_by_hand():
    def one(own: list[float], passing: list[bool], **settings: Any) -> list[float]:
        mask = torch.tensor(passing)
        attack = Adaptive(knowledge="oracle", **settings)
        return attacked(attack, torch.tensor([own]), last(1, 1), mask=lambda _: mask)[0].tolist()

    assert one([3.0, 4.0], [True, False]) == pytest.approx([5.0, 4.0])
    assert one([3.0, 4.0], [False, True], others="zero") == pytest.approx([0.0, 5.0])
    assert one([3.0, 4.0], [True, False], max_scale=1.5) == pytest.approx([4.5, 4.0])
    assert one([3.0, 4.0], [True, True]) == [3.0, 4.0]
    assert one([3.0, 4.0], [False, False]) == [3.0, 4.0]
    assert one([0.0, 4.0], [True, False]) == [0.0, 4.0]
    assert one([0.1, 40.0], [True, False]) == pytest.approx([1.0, 40.0])  # capped at 10


@pytest.mark.parametrize("others", OTHERS)
def test_hostile_values(others):
    malicious = last(5, 4)
    updates = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1e30, -1e30], [1e-30, 1e-30], [NAN, 1.0]])
    attack = Adaptive(knowledge="oracle", others=others)
    mask = torch.tensor([True, False])
    found = attacked(attack, updates, malicious, mask=lambda _: mask, rehearsed=torch.zeros(4, 2))
    assert not found[1].any()
    assert found[2, 0].item() == pytest.approx(math.sqrt(2) * 1e30)
    assert found[3, 0].item() <= 1.5e-30
    assert found[2:4].isfinite().all()
    assert not found[4].isfinite().all()  # for the server to exclude


def test_the_average_elsewhere_is_of_what_is_finite():
    honest = torch.tensor([[1.0, 2.0], [NAN, 0.0]])
    attack = Adaptive(knowledge="oracle", others="benign")
    found = attacked(attack, torch.ones(3, 2), last(3, 2), mask=lambda _: torch.zeros(2).bool(), rehearsed=honest)
    assert found[1:].tolist() == [[1.0, 2.0]] * 2


# ---- which coordinates -----------------------------------------------------------------------------------------------


def expected(attack: Adaptive, updates: Tensor, malicious: Tensor, *, mask: Any = RULE.mask, **known: Any) -> Tensor:
    """(d,) bool, U."""
    shard = UpdateShard.from_updates(updates, malicious=malicious)
    rehearsed = known.get("rehearsed")
    honest = None if rehearsed is None else UpdateShard.from_updates(rehearsed)
    before = bits(shard.values)
    found = attack.expected_mask(shard, Knowledge(mask, honest, known.get("last_step")), int(malicious.sum()))
    assert bits(shard.values) == before
    assert (shard.num_clients, found.dtype, found.shape) == (len(updates), torch.bool, updates.shape[1:])
    return found


def test_the_oracle_sees_the_rules_own_mask_of_all_updates():
    updates, malicious = round_of()
    passing = expected(Adaptive(knowledge="oracle"), updates, malicious)
    assert torch.equal(passing, votes_by_hand(updates))
    assert 20 < passing.sum() < 280


@pytest.mark.parametrize("rule", [RULE, AndMask(tau=TAU)], ids=lambda rule: type(rule).__name__)
def test_the_oracle_is_right_as_scaling_changes_no_vote(rule):
    updates, malicious = round_of()
    after = attacked(Adaptive(knowledge="oracle"), updates, malicious, mask=rule.mask)
    assert torch.equal(rule.mask(UpdateShard.from_updates(after)), rule.mask(UpdateShard.from_updates(updates)))
    passing = expected(Adaptive(knowledge="oracle"), updates, malicious)
    for row, own in zip(after[malicious], updates[malicious], strict=True):
        assert (row.double() * passing).norm().item() == pytest.approx(own.double().norm().item(), rel=1e-6)


def test_what_the_last_global_step_moved_is_what_passed_in_the_round_before():
    updates, malicious = round_of(d=5)
    step = torch.tensor([0.0, 1e-30, -2.0, -0.0, 0.5])
    passing = expected(Adaptive(), updates, malicious, last_step=step)
    assert passing.tolist() == [False, True, True, False, True]


@pytest.mark.parametrize("others", OTHERS)
def test_in_the_first_round_nothing_is_known_to_pass(others):
    updates, malicious = round_of()
    honest = drawn(3, 300, seed=1)
    found = attacked(Adaptive(others=others), updates, malicious, last_step=torch.zeros(300), rehearsed=honest)[malicious]
    if others == "keep":
        assert bits(found) == bits(updates[malicious])
    elif others == "zero":
        assert not found.any()
    else:
        torch.testing.assert_close(found, honest.mean(0).expand(3, 300))


def test_shadow_clients_vote_beside_the_malicious_updates():
    updates, malicious = round_of()
    simulated, honest = drawn(1, 300, seed=5) + drawn(6, 300, seed=2), drawn(3, 300, seed=3)
    votes = votes_by_hand(torch.cat([simulated, updates[malicious]]))
    attack = Adaptive(knowledge="shadow")
    assert torch.equal(expected(attack, updates, malicious, rehearsed=simulated), votes)
    with_own = torch.cat([honest, simulated])
    attack = Adaptive(knowledge="shadow", others="benign")
    assert torch.equal(expected(attack, updates, malicious, rehearsed=with_own), votes)
    assert not torch.equal(votes, votes_by_hand(updates))


@pytest.mark.parametrize("others", OTHERS)
def test_colluders_vote_among_themselves(others):
    updates, malicious = round_of()
    honest = drawn(3, 300, seed=3)
    passing = expected(Adaptive(knowledge="colluders", others=others), updates, malicious, rehearsed=honest)
    assert torch.equal(passing, votes_by_hand(honest))
    assert passing.float().mean() == pytest.approx(0.25, abs=0.1)  # all three alike, as 1/3 is less than tau


@pytest.mark.parametrize("level", ["oracle", "shadow", "colluders"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_updates_that_the_server_will_exclude_do_not_vote(level, value):
    updates, malicious = round_of()
    honest = drawn(1, 300, seed=5) + drawn(3 if level == "colluders" else 6, 300, seed=2)
    seen = {"oracle": updates, "shadow": torch.cat([honest, updates[malicious]]), "colluders": honest}[level]
    attack = Adaptive(knowledge=level)
    votes = votes_by_hand(seen)
    assert torch.equal(expected(attack, updates, malicious, rehearsed=honest), votes)
    loud = seen.clone()
    loud[0] = -3.0
    loud[0, 7] = value
    given = {
        "oracle": (loud, honest),
        "shadow": (updates, loud[:6]),
        "colluders": (updates, loud),
    }[level]
    assert torch.equal(expected(attack, given[0], malicious, rehearsed=given[1]), votes_by_hand(seen[1:]))
    assert not torch.equal(votes_by_hand(seen[1:]), votes)


@pytest.mark.parametrize("level", ["oracle", "shadow", "colluders"])
def test_of_nothing_but_excluded_updates_nothing_passes(level):
    updates = torch.full((4, 5), NAN)
    rehearsed = torch.full((2, 5), INF)
    assert not expected(Adaptive(knowledge=level), updates, last(4, 2), rehearsed=rehearsed).any()


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("level", LEVELS)
def test_a_round_of_attackers_alone(level, others):
    updates, everyone = round_of(4)[0], last(4, 4)
    attack = Adaptive(knowledge=level, others=others)
    data = [TensorSamples(torch.zeros(3, 1), torch.zeros(3)) for _ in range(4)]
    asked = attack.rehearse(data, [Attacker(client=i, seed=0, pool=data[0]) for i in range(4)], 0)
    assert len(asked) == (4 if others == "benign" or level == "colluders" else 0)
    honest = drawn(4, 300, seed=3)
    known: dict[str, Any] = {"last_step": drawn(1, 300)[0], "rehearsed": honest if asked else None}
    passing = expected(attack, updates, everyone, **known)
    if level == "previous_round":
        assert passing.all()
    else:
        assert torch.equal(passing, votes_by_hand(honest if level == "colluders" else updates))
    elsewhere = {"keep": None, "zero": torch.zeros(300), "benign": honest.double().mean(0)}[others]
    for row, own in zip(attacked(attack, updates, everyone, mask=RULE.mask, **known), updates, strict=True):
        torch.testing.assert_close(row, by_hand(own, passing, elsewhere), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("level", ["oracle", "colluders"])
def test_a_rule_of_its_own_takes_the_place_of_a_server_without_mask(level):
    updates, malicious = round_of()
    known = {"rehearsed": updates[malicious]}
    blind = attacked(Adaptive(knowledge=level), updates, malicious, mask=FedAvg().mask, **known)
    torch.testing.assert_close(blind, updates, rtol=1e-6, atol=0)
    own = expected(Adaptive(knowledge=level, rule=RULE), updates, malicious, mask=FedAvg().mask, **known)
    assert torch.equal(own, expected(Adaptive(knowledge=level), updates, malicious, mask=RULE.mask, **known))


@pytest.mark.parametrize("rule", [Bucketing(rule=RULE), MeanVarianceRatio()], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("level", ["oracle", "shadow", "colluders"])
def test_any_rule_with_a_mask_will_do(rule, level):
    updates, malicious = round_of()
    known = {"rehearsed": drawn(1, 300, seed=5) + drawn(3 if level == "colluders" else 6, 300, seed=3)}
    passing = expected(Adaptive(knowledge=level), updates, malicious, mask=rule.mask, **known)
    assert 0 < passing.sum() < 300
    own = Adaptive(knowledge=level, rule=rule)
    assert torch.equal(expected(own, updates, malicious, mask=everything_passes, **known), passing)


# ---- what is rehearsed -----------------------------------------------------------------------------------------------


def rehearsed(attack: Adaptive, sizes: list[int], num_benign: int, round_number: int = 0) -> list[list[int]]:
    """Which samples, numbered over all attackers' data, each rehearsal holds."""
    firsts = np.cumsum([0, *sizes]).tolist()
    data = [TensorSamples(torch.arange(a, b).view(-1, 1), torch.zeros(b - a)) for a, b in pairwise(firsts)]
    attackers = [Attacker(client=10 * i, seed=0, pool=data[0], round_number=round_number) for i in range(len(sizes))]
    asked = attack.rehearse(data, attackers, num_benign)
    return [samples.batch(torch.arange(len(samples)))[0].flatten().tolist() for samples in asked]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("others", OTHERS)
def test_rehearsals_are_their_own_clean_data_and_then_those_of_simulated_clients(level, others):
    own = [[0, 1, 2], [3, 4, 5, 6], [7]]
    found = rehearsed(Adaptive(knowledge=level, others=others), [3, 4, 1], 5)
    honest = own if others == "benign" or level == "colluders" else []
    assert found[: len(honest)] == honest
    simulated = found[len(honest) :]
    assert len(simulated) == (5 if level == "shadow" else 0)
    for samples in simulated:
        assert len(samples) == len(set(samples)) == 3  # of 8 samples of three clients
        assert set(samples) <= set(range(8))


def test_simulated_clients_differ_from_each_other_and_from_round_to_round_but_not_from_rank_to_rank():
    attack = Adaptive(knowledge="shadow")
    first = rehearsed(attack, [30, 30], 4)
    torch.manual_seed(1)
    assert rehearsed(Adaptive(knowledge="shadow"), [30, 30], 4) == first
    assert len({tuple(samples) for samples in first}) == 4
    assert rehearsed(attack, [30, 30], 4, round_number=1) != first


# ---- settings --------------------------------------------------------------------------------------------------------


def test_steps_are_watched_only_where_they_are_looked_at():
    assert [Adaptive(knowledge=level).watches_steps for level in LEVELS] == [True, False, False, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"knowledge": "all"}, "knowledge must be one of previous_round, oracle, shadow, colluders, got 'all'"),
        ({"others": "drop"}, "others must be keep, zero or benign, got 'drop'"),
        ({"max_scale": 0.99}, r"max_scale must be at least 1 and finite, got 0\.99"),
        ({"max_scale": NAN}, "max_scale .* got nan"),
        ({"max_scale": INF}, "max_scale .* got inf"),
        ({"knowledge": "oracle", "rule": torch.nn.ReLU()}, "rule must be a server rule, got ReLU"),
        ({"rule": Invariant()}, "rule is of no use with knowledge: previous_round"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=rf"Adaptive\.{message}"):
        Adaptive(**settings)
