"""The adaptive attack in a federation."""

from typing import Any

import pytest
import torch
from adaptive_oracle import LEVELS, RULE, TAU, by_hand, votes_by_hand
from rows import Watch, bits
from tiny import FEATURES, fit, tiny_federation
from torch import Tensor

from fl_lightning import CohortSampler
from fl_lightning.aggregators import FedAvg, Invariant
from fl_lightning.attacks import Adaptive, Attack, Collude, EdgeCase, ValueTrigger
from fl_lightning.data import EdgePool, TensorSamples


class Seeing(Adaptive):
    """Keeps malicious rows as they were, and what the rehearsals gave."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.own: list[Tensor] = []
        self.rehearsed: list[Tensor] = []

    def corrupt(self, shard, knowledge) -> None:
        self.own.append(shard.values[shard.malicious].clone())
        if knowledge.rehearsed is not None:
            self.rehearsed.append(knowledge.rehearsed.values.clone())
        super().corrupt(shard, knowledge)


TRIGGER: dict[str, Any] = {"column": 5, "value": 4.0, "source_label": 1, "target_label": 0, "poison_fraction": 0.5}


def run(*attacks: Attack, rule: Any = RULE, rounds: int = 3, **settings: Any) -> Watch:
    watch = Watch()
    cohort = CohortSampler(clients_per_round=7, malicious_fraction=0.45)
    fit(tiny_federation(aggregator=rule, attacks=attacks, cohort=cohort, **settings), rounds=rounds, callbacks=[watch])
    return watch


@pytest.mark.parametrize(
    ("level", "others"),
    [("previous_round", "keep"), ("previous_round", "zero"), ("oracle", "keep"), ("shadow", "benign"), ("colluders", "zero")],
)
def test_every_level_of_knowledge_under_the_invariant_rule(level, others):
    attack = Seeing(knowledge=level, others=others)
    watch = run(ValueTrigger(**TRIGGER), attack)
    for t, (updates, malicious) in enumerate(zip(watch.updates, watch.malicious, strict=True)):
        f, own = int(malicious.sum()), attack.own[t]
        assert f >= 3
        passing = torch.zeros(updates.shape[1], dtype=torch.bool)
        if level == "previous_round" and t > 0:
            passing = watch.aggregates[t - 1] != 0
        elif level == "oracle":
            passing = votes_by_hand(torch.cat([updates[~malicious], own]))
        elif level == "shadow":
            assert len(attack.rehearsed[t]) == 7
            passing = votes_by_hand(torch.cat([attack.rehearsed[t][f:], own]))
        elif level == "colluders":
            assert len(attack.rehearsed[t]) == f
            passing = votes_by_hand(attack.rehearsed[t])
        assert 20 < passing.sum() < 420 or (level == "previous_round" and t == 0)
        elsewhere = None if others == "keep" else torch.zeros(updates.shape[1])
        if others == "benign":
            elsewhere = attack.rehearsed[t][:f].double().mean(0)
        for row, was in zip(updates[malicious], own, strict=True):
            torch.testing.assert_close(row, by_hand(was, passing, elsewhere), rtol=1e-4, atol=1e-7)


def test_a_server_without_mask_and_a_rule_of_the_attackers_own():
    attack = Seeing(knowledge="oracle", rule=Invariant(tau=TAU))
    watch = run(ValueTrigger(**TRIGGER), attack, rule=FedAvg(), rounds=1)
    updates, malicious = watch.updates[0], watch.malicious[0]
    passing = votes_by_hand(torch.cat([updates[~malicious], attack.own[0]]))
    for row, was in zip(updates[malicious], attack.own[0], strict=True):
        torch.testing.assert_close(row, by_hand(was, passing), rtol=1e-5, atol=1e-7)
        assert (row.double() * passing).norm().item() == pytest.approx(was.double().norm().item(), rel=1e-6)


class Halves(EdgePool):
    """Inputs that no client holds, all of class 1."""

    label = 1

    def train(self) -> TensorSamples:
        return TensorSamples(torch.full((30, FEATURES), -0.5), torch.ones(30))

    def test(self) -> TensorSamples:
        return self.train()


@pytest.mark.parametrize(
    "backdoor",
    [ValueTrigger(**TRIGGER), EdgeCase(pool=Halves(), target_label=0, num_edge=10, num_clean=20)],
    ids=lambda attack: type(attack).__name__,
)
@pytest.mark.parametrize("level", LEVELS)
def test_colluders_adapt_together_behind_a_backdoor(backdoor, level):
    attack = Seeing(knowledge=level, max_scale=3.0)
    watch = run(backdoor, Collude(), attack, rounds=2)
    for t, (updates, malicious) in enumerate(zip(watch.updates, watch.malicious, strict=True)):
        own = attack.own[t]
        assert all(bits(row) == bits(own[0]) for row in own)
        after = updates[malicious]
        assert all(bits(row) == bits(after[0]) for row in after)
        assert torch.equal(after[0].sign(), own[0].sign())
        grown = after[0] != own[0]
        if level == "previous_round" and t == 0:
            assert not grown.any()
            continue
        assert grown.any()
        scale = min(3.0, float(own[0].double().norm() / (own[0].double() * grown).norm()))
        torch.testing.assert_close(after[0][grown], scale * own[0][grown], rtol=1e-5, atol=1e-9)
