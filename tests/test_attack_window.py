"""An attack with a beginning, an end and pauses: whom cohorts hold, and that nobody attacks outside."""

from typing import Any

import lightning as L
import pytest
import torch
from tiny import Scale, tiny_data, tiny_federation, tiny_trainer, vector

from fl_lightning import (
    BackdoorMetrics,
    CohortSampler,
    ConfigurationError,
    RunRecord,
)
from fl_lightning.aggregators import FedAvg
from fl_lightning.attacks import Attack, ValueTrigger

SIZES = torch.arange(100) % 37 + 1
KINDS: dict[str, dict[str, Any]] = {
    "fixed_share": {},
    "random_pool": {},
    "fixed_frequency": {"attackers": 2},
    "single_shot": {"rounds": (3, 5, 5)},
}


def sampler(kind: str, **window: Any) -> CohortSampler:
    return CohortSampler(participation=kind, **KINDS[kind], **window)  # type: ignore[arg-type]


# ---- cohorts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["benign", "absent"])
@pytest.mark.parametrize("kind", KINDS)
def test_malicious_clients_attack_in_the_window_alone(kind, after):
    window = sampler(kind, start_round=3, end_round=8, interval=2, after=after)
    endless = sampler(kind, start_round=3, interval=2)
    malicious = set(window.malicious_clients(0, 100).tolist())
    attacked = []
    for t in range(14):
        cohort, other = window.draw(0, t, SIZES), endless.draw(0, t, SIZES)
        assert len(set(cohort.clients.tolist())) == 20
        assert torch.equal(cohort.malicious, cohort.attackers >= 0)
        if cohort.malicious.any():
            attacked.append(t)
        if t < 8 or after == "benign":  # cohorts are made up as without an end
            assert torch.equal(cohort.clients, other.clients)
        else:
            assert not malicious & set(cohort.clients.tolist())
        if t < 8:
            assert torch.equal(cohort.attackers, other.attackers)
    assert attacked == [3, 5] if kind == "single_shot" else [3, 5, 7]
    assert list(window.attacked_rounds(100)) == attacked
    assert list(window.attacked_rounds(6)) == [3, 5]
    assert window.ends
    assert endless.ends == (kind == "single_shot")


def test_absent_clients_are_replaced_by_benign_ones_alike():
    """Each of the 80 benign clients is drawn in a quarter of the rounds; none of the 20 malicious ones is."""
    window = CohortSampler(end_round=1, after="absent")
    drawn = torch.zeros(100)
    for t in range(1, 401):
        drawn[window.draw(0, t, SIZES).clients] += 1
    malicious = window.malicious_clients(0, 100)
    assert not drawn[malicious].any()
    others = drawn[torch.tensor([i for i in range(100) if i not in malicious.tolist()])]
    assert float(others.mean()) == 100
    # Of a binomial with 400 draws of .25 the deviation is 8.7; six of them lie beyond any of 80 clients.
    assert float((others - 100).abs().max()) < 6 * 8.7


def test_pauses_are_as_the_rounds_before():
    assert [int(sampler("fixed_share", interval=3).draw(0, t, SIZES).malicious.sum()) for t in range(7)] == [
        4,
        0,
        0,
        4,
        0,
        0,
        4,
    ]
    malicious = set(sampler("fixed_share").malicious_clients(0, 100).tolist())
    shared, frequent = sampler("fixed_share", interval=3), sampler("fixed_frequency", interval=3)
    assert len(malicious & set(shared.draw(0, 1, SIZES).clients.tolist())) == 4
    assert not malicious & set(frequent.draw(0, 1, SIZES).clients.tolist())


def test_an_interval_that_is_left_out_is_the_one_of_its_kind():
    assert list(sampler("fixed_share", end_round=3).attacked_rounds(100)) == [0, 1, 2]
    assert list(sampler("fixed_frequency", end_round=21).attacked_rounds(100)) == [0, 10, 20]
    assert list(CohortSampler(malicious_fraction=0.0).attacked_rounds(9)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start_round": 4, "end_round": 4}, "end_round = 4 .* start_round = 4; give at least 5, or null"),
        ({"end_round": 1.5}, "end_round must be a whole number, got 1.5"),
        ({"interval": 0}, "interval must be at least 1, got 0"),
        ({"interval": True}, "interval must be a whole number, got True"),
        ({"after": "absent"}, "after = absent says what follows the attack, which has no end; give end_round too"),
        ({"after": "gone", "end_round": 2}, "after must be benign or absent, got 'gone'"),
        (
            {"participation": "single_shot", "rounds": (3, 9), "end_round": 9},
            r"rounds = \[9\]: not in the attack's window, start_",
        ),
        (
            {"participation": "single_shot", "rounds": (2, 3), "interval": 2},
            r"rounds = \[3\]: .* start_round = 0, interval = 2",
        ),
    ],
)
def test_windows_without_a_round_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        CohortSampler(**settings)


def test_too_few_benign_clients_for_rounds_without_the_others():
    with pytest.raises(ConfigurationError, match=r"from round 3 on a round needs 20 benign clients, but .* of 24 leaves 19"):
        CohortSampler(participation="random_pool", end_round=3, after="absent").check(24)
    CohortSampler(participation="random_pool", end_round=3).check(24)


# ---- rounds ----------------------------------------------------------------------------------------------------------


class Watched(Attack):
    """Notes which of its hooks are called, by round."""

    watches_steps = True

    def __init__(self) -> None:
        self.called: set[tuple[str, int]] = set()
        self.buffers = 0  # how often, as their shard does not say in which round

    def plan(self, module, datasets, attackers) -> None:
        self.called.add(("plan", attackers[0].round_number))

    def conspire(self, datasets, attackers):
        self.called.add(("conspire", attackers[0].round_number))
        return super().conspire(datasets, attackers)

    def poison(self, dataset, attacker):
        self.called.add(("poison", attacker.round_number))
        return dataset

    def rehearse(self, datasets, attackers, num_benign):
        self.called.add(("rehearse", attackers[0].round_number))
        return list(datasets)

    def constrain(self, module, broadcast, step, steps) -> None:
        self.called.add(("constrain", broadcast.round_number))

    def corrupt(self, shard, knowledge) -> None:
        self.called.add(("corrupt", shard.round_number))

    def corrupt_buffers(self, shard) -> None:
        self.buffers += 1

    def stamp(self, test):
        return test


class Flags(L.Callback):
    """Notes how many rows are malicious to rules, by round."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_aggregate(self, federation, shard, aggregate) -> None:
        self.counts.append(int(shard.malicious.sum()))


@pytest.mark.parametrize("after", ["benign", "absent"])
def test_no_hook_of_an_attack_is_called_outside_its_window(after):
    attack, flags, record = Watched(), Flags(), RunRecord()
    cohort = CohortSampler(clients_per_round=5, malicious_fraction=0.3, start_round=1, end_round=4, interval=2, after=after)
    trainer = tiny_trainer(6, callbacks=[flags, BackdoorMetrics(), record], fast_dev_run=6)
    trainer.fit(tiny_federation(attacks=[attack], cohort=cohort, aggregator=FedAvg()), tiny_data())
    hooks = {"plan", "conspire", "poison", "rehearse", "constrain", "corrupt"}
    assert attack.called == {(hook, t) for hook in hooks for t in (1, 3)}
    assert attack.buffers == 2
    assert [count > 0 for count in flags.counts] == [False, True, False, True, False, False]
    assert len([entry for entry in record.history.entries if "asr" in entry]) == 6  # measured all the same


def test_a_quiet_round_is_that_of_a_federation_without_attack():
    """Up to the first attack, and in what the clients do after the last one, bits are those of a run with no attacks."""
    window = CohortSampler(clients_per_round=5, malicious_fraction=0.3, start_round=2, end_round=3)
    calm = CohortSampler(clients_per_round=5, malicious_fraction=0.3, start_round=99)
    attacked, never = tiny_federation(cohort=window, attacks=[ValueTrigger(column=5), Scale(3.0)]), tiny_federation(cohort=calm)
    tiny_trainer(2).fit(attacked, tiny_data())
    tiny_trainer(2).fit(never, tiny_data())
    assert torch.equal(vector(attacked.client), vector(never.client))
