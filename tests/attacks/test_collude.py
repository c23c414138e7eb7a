"""Collusion: who trains on what, and that all submit the same."""

from typing import Any

import lightning as L
import pytest
import torch
from rows import INF, NAN, Watch, attacked, bits, drawn, last
from tiny import CLASSES, CLIENTS, Relabel, TinyClient, fit, tiny_data, tiny_federation

from fl_lightning import CohortSampler
from fl_lightning.aggregators import FedAvg, Invariant
from fl_lightning.attacks import Attack, Attacker, Collude, Knowledge, ValueTrigger
from fl_lightning.attacks.edge_case import EdgeBatches
from fl_lightning.data import IID, MapSamples, Samples, TensorSamples
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import UpdateShard

MODES = ["pool", "first", "mean"]


def numbered(first: int, n: int) -> TensorSamples:
    inputs = torch.arange(first, first + n)
    return TensorSamples(inputs.view(n, 1).float(), inputs % 3)


def contents(samples: Samples) -> list[tuple[float, int]]:
    inputs, targets = samples.batch(torch.arange(len(samples)))
    return list(zip(inputs.flatten().tolist(), targets.tolist(), strict=True))


def conspired(mode: Any, datasets: list[Samples]) -> list[list[tuple[float, int]]]:
    attackers = [Attacker(client=i, seed=0, pool=datasets[0]) for i in range(len(datasets))]
    found = Collude(mode=mode).conspire(datasets, attackers)
    return [contents(samples) if len(samples) else [] for samples in found]


# ---- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [lambda data: data, MapSamples], ids=["tensors", "lazy"])
def test_who_trains_on_what(kind):
    parts = [numbered(0, 4), numbered(100, 1), numbered(200, 7)]
    given, all_of = [kind(part) for part in parts], [contents(part) for part in parts]
    assert conspired("pool", given) == [all_of[0] + all_of[1] + all_of[2], [], []]
    assert conspired("first", given) == [all_of[0], [], []]
    assert conspired("mean", given) == all_of


@pytest.mark.parametrize("mode", MODES)
def test_a_lone_attacker_trains_on_its_own(mode):
    assert conspired(mode, [numbered(5, 3)]) == [contents(numbered(5, 3))]


def test_edge_cases_that_are_mixed_into_batches_are_pooled_with_their_share():
    own = [EdgeBatches(numbered(10 * i, 8), numbered(100 + 10 * i, 3).relabel(torch.full((3,), 9)), 0.25) for i in range(3)]
    (together, *_) = Collude(mode="pool").conspire(own, [Attacker(client=i, seed=0, pool=own[0]) for i in range(3)])
    assert len(together) == 24
    edge = set()
    for seed in range(20):
        inputs, targets = together.batch(torch.arange(24).roll(seed)[:8], torch.Generator().manual_seed(seed))
        poisoned = inputs.flatten() >= 100
        assert poisoned.tolist() == [False] * 6 + [True] * 2  # a quarter of the batch, as each client's had
        assert targets[poisoned].tolist() == [9, 9]
        edge |= set(inputs.flatten()[poisoned].tolist())
    assert edge == {100.0 + 10 * i + k for i in range(3) for k in range(3)}  # of all clients
    with pytest.raises(ConfigurationError, match=r"poisoned batch by batch \(mix: batch\) are read in batches alone"):
        own[0][0]


def test_poisoned_data_are_pooled_with_their_triggers_and_labels():
    federation = tiny_federation(attacks=[Relabel(), Collude()])
    datasets: list[Samples] = [numbered(0, 6), numbered(50, 6)]
    attackers = [Attacker(client=i, seed=0, pool=datasets[0]) for i in range(2)]
    for attack in federation.attacks:
        datasets = attack.conspire(datasets, attackers)
    assert datasets[0].targets.tolist() == [0] * 12
    assert len(datasets[1]) == 0


# ---- updates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hook", ["corrupt", "corrupt_buffers"])
def test_all_submit_the_same(mode, hook):
    updates, malicious = drawn(7, 3000), torch.tensor([False, True, False, True, True, False, True])
    shard = UpdateShard([updates.clone()], torch.ones(7), malicious, num_coordinates=3000)
    arguments = [Knowledge(lambda s: torch.ones(s.width).bool())] if hook == "corrupt" else []
    getattr(Collude(mode=mode), hook)(shard, *arguments)
    rows = shard.values[malicious]
    assert all(bits(row) == bits(rows[0]) for row in rows)
    assert bits(shard.values[~malicious]) == bits(updates[~malicious])
    if mode == "mean":
        expected = sum(updates[i].double() for i in (1, 3, 4, 6)) / 4
        torch.testing.assert_close(rows[0].double(), expected, rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(rows[0], updates[1])


@pytest.mark.parametrize("mode", MODES)
def test_a_lone_attacker_submits_what_it_found(mode):
    updates = drawn(4, 30)
    assert torch.equal(attacked(Collude(mode=mode), updates, last(4, 1)), updates)


def test_the_mean_is_of_what_is_finite():
    updates = torch.tensor([[9.0, 9.0], [1.0, 2.0], [NAN, 0.0], [3.0, 6.0], [0.0, -INF]])
    assert attacked(Collude(mode="mean"), updates, last(5, 4))[1:].tolist() == [[2.0, 4.0]] * 4
    hopeless = attacked(Collude(mode="mean"), updates[[0, 2, 4]], last(3, 2))
    assert hopeless[1:].isfinite().tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("mode", ["pool", "first"])
def test_a_training_that_diverged_is_nobody_elses_to_mend(mode):
    updates = torch.tensor([[9.0, 9.0], [NAN, 2.0], [0.0, 0.0]])
    assert attacked(Collude(mode=mode), updates, last(3, 2))[1:].isnan().tolist() == [[True, False]] * 2


def test_identical_votes_decide_a_coordinate_by_themselves():
    """Three of seven against benign clients that cancel out: (3 + 0) / 7 exceeds tau = .4, as no independent three would."""
    benign = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    apart = torch.cat([benign, torch.tensor([[5.0], [5.0], [-4.0]])])
    rule = Invariant(tau=0.4)
    assert not rule.mask(UpdateShard.from_updates(apart)).any()
    assert rule.mask(UpdateShard.from_updates(attacked(Collude(mode="mean"), apart, last(7, 3)))).all()


# ---- in a federation -------------------------------------------------------------------------------------------------


class FirstTrains(Attack):
    """Written out: the first trains on the given samples, and everybody sends that."""

    def __init__(self, *, pooled: bool) -> None:
        self.pooled = pooled

    def conspire(self, datasets, attackers) -> list[Samples]:
        assert all(isinstance(data, TensorSamples) for data in datasets)
        used = datasets if self.pooled else datasets[:1]
        inputs, targets = torch.cat([data.inputs for data in used]), torch.cat([data.targets for data in used])
        return [TensorSamples(inputs, targets)] + [TensorSamples(inputs[:0], targets[:0]) for _ in datasets[1:]]

    def corrupt(self, shard, knowledge):
        (rows,) = torch.nonzero(shard.malicious).T.tolist()
        assert not any(bucket[rows[1:]].any() for bucket in shard.buckets)  # they have not trained
        for bucket in shard.buckets:
            bucket[rows] = bucket[rows[0]]

    def corrupt_buffers(self, shard):
        for bucket in shard.buckets:
            bucket[shard.malicious] = bucket[shard.malicious][0]


def run(*attacks: Attack) -> tuple[Watch, L.LightningModule]:
    watch = Watch()
    torch.manual_seed(0)
    trigger = ValueTrigger(column=5, value=4.0, source_label=1, target_label=0, poison_fraction=0.5)
    federation = tiny_federation(
        client=TinyClient(dropout=0.0),
        aggregator=FedAvg(),
        attacks=[trigger, *attacks],
        cohort=CohortSampler(clients_per_round=7, malicious_fraction=0.45),
    )
    fit(federation, tiny_data(IID(num_clients=CLIENTS), n=40 * CLASSES), rounds=2, callbacks=[watch])
    return watch, federation.client


@pytest.mark.parametrize("mode", ["pool", "first"])
def test_one_trains_and_all_submit_that(mode):
    (found, client), (expected, other) = run(Collude(mode=mode)), run(FirstTrains(pooled=mode == "pool"))
    for updates, by_hand, malicious in zip(found.updates, expected.updates, found.malicious, strict=True):
        assert malicious.sum() >= 3
        assert bits(updates) == bits(by_hand)
    for name, value in client.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_each_trains_and_all_submit_the_mean():
    (found, _), (apart, _) = run(Collude(mode="mean")), run()
    malicious = found.malicious[0]
    rows, own = found.updates[0][malicious], apart.updates[0][malicious]
    assert (own[0] - own[1]).abs().max() > 1e-2
    torch.testing.assert_close(rows, own.mean(0).expand_as(rows), rtol=1e-5, atol=1e-6)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigurationError, match=r"Collude\.mode must be one of pool, first, mean, got 'all'"):
        Collude(mode="all")  # type: ignore[arg-type]
