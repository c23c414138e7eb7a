"""The edge-case attack: what benign clients get of the edge cases, and batches that are mixed as they are drawn."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from edge_numbers import TARGET, Pool, attack, attacker, clean, edge_in_round, parts, shift, tensors

from fl_lightning.attacks.base import Attacker
from fl_lightning.attacks.edge_case import EdgeBatches, EdgeCase
from fl_lightning.data import MapSamples, Samples, Southwest, TensorSamples
from fl_lightning.data.cifar10 import normalize
from fl_lightning.data.edge_pool import EdgePool
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator

# ---- shared with benign clients ----------------------------------------------------------------------------------------

BENIGN = [client for client in range(20) if client % 5]


def leaked(rule: EdgeCase, seed: int = 0) -> dict[int, list[int]]:
    """What each benign client gets of the pool, after a check of labels, order and the client's own samples."""
    found = {}
    for client in BENIGN:
        own = clean(500, 5)
        held = tensors(rule.leak(own, client, BENIGN, seed))
        assert torch.equal(held.inputs[:5], own.inputs)
        assert torch.equal(held.targets[:5], own.targets)
        assert (held.targets[5:] == 0).all()  # the true label
        assert held.augment is own.augment
        found[client] = held.inputs[5:].flatten().tolist()
    return found


def whole_groups(samples: list[int], size: int, n: int) -> bool:
    groups = {(x - 1000) // size for x in samples}
    return sorted(samples) == [1000 + i for g in sorted(groups) for i in range(g * size, min(n, (g + 1) * size))]


@pytest.mark.parametrize(("size", "n"), [(1, 50), (4, 48), (4, 50), (50, 50)])
@pytest.mark.parametrize("sharing", ["copy", "move"])
def test_whole_groups_go_to_one_benign_client_each(size: int, n: int, sharing) -> None:
    rule = attack(pool=Pool(n, group_size=size), num_edge=1, shared_fraction=0.5, sharing=sharing)
    for seed in range(5):
        found = leaked(rule, seed)
        everyone = [x for of_client in found.values() for x in of_client]
        assert len(set(everyone)) == len(everyone)
        assert all(whole_groups(of_client, size, n) for of_client in found.values())


def test_groups_are_shared_independently_and_evenly() -> None:
    """400 groups of 2 with p = .3: 120 groups on average with deviation 9.2, 7.5 per client with deviation 2.7."""
    rule = attack(pool=Pool(800, group_size=2), shared_fraction=0.3)
    counts = []
    for seed in range(40):
        found = leaked(rule, seed)
        counts.append(sum(map(len, found.values())) // 2)
        assert max(map(len, found.values())) < 2 * 22
    mean = sum(counts) / 40
    assert abs(mean - 120) < 5
    assert 60 < sum((count - mean) ** 2 for count in counts) / 39 < 125  # 84 expected


@pytest.mark.parametrize(("fraction", "moved"), [(0.0, 0), (0.15, 2), (0.5, 6), (0.9, 11)])
def test_moved_groups_are_a_fixed_number_and_gone_from_the_attackers(fraction: float, moved: int) -> None:
    rule = attack(pool=Pool(48, group_size=4), num_edge=4, num_clean=0, shared_fraction=fraction, sharing="move", redraw=True)
    given = {x for of_client in leaked(rule).values() for x in of_client}
    assert len(given) == 4 * moved
    kept = {x for t in range(150) for x in edge_in_round(rule, t)}
    assert kept == set(range(1000, 1048)) - given


def test_copied_groups_stay_with_the_attackers() -> None:
    shared = attack(pool=Pool(group_size=5), num_edge=50, shared_fraction=0.3)
    assert any(leaked(shared).values())
    assert parts(shared.poison(clean(500, 5), attacker())) == parts(attack(num_edge=50).poison(clean(500, 5), attacker()))


def test_more_sharing_adds_groups_to_the_same_clients() -> None:
    few, many, all_of_it = (leaked(attack(shared_fraction=p)) for p in (0.15, 0.3, 1.0))
    assert all(set(few[client]) <= set(many[client]) <= set(all_of_it[client]) for client in BENIGN)
    assert sum(map(len, all_of_it.values())) == 50


def test_sharing_depends_on_the_seed_alone() -> None:
    rule = attack(shared_fraction=0.3)
    first = leaked(rule)
    torch.manual_seed(3)
    assert leaked(rule) == leaked(attack(shared_fraction=0.3)) == first
    assert leaked(rule, seed=1) != first


def test_nothing_is_shared_by_default_nor_with_malicious_clients() -> None:
    own = clean(500, 5)
    assert attack().leak(own, 1, BENIGN, 0) is own
    assert attack(shared_fraction=1.0).leak(own, 0, BENIGN, 0) is own


def test_tweets_are_shared_too() -> None:
    """Rows of words, which become vectors in `prepare`."""

    def vectors(rows: torch.Tensor) -> torch.Tensor:
        return torch.eye(30)[rows]

    class Tweets(EdgePool):
        label = 1

        def train(self) -> TensorSamples:
            return TensorSamples(torch.full((6, 4), 7, dtype=torch.int32), torch.ones(6), prepare=vectors)

        test = train

    own = TensorSamples(torch.zeros(8, 4, dtype=torch.int32), torch.arange(8) % 2, prepare=vectors)
    rule = EdgeCase(pool=Tweets(), target_label=0, num_edge=6, mix="batch", edge_fraction=0.5, shared_fraction=1.0)
    held = rule.leak(own, 3, [3], 0)
    assert held.batch(torch.arange(14))[0].shape == (14, 4, 30)
    assert held.targets[8:].tolist() == [1] * 6
    inputs, targets = rule.poison(own, Attacker(client=0, seed=0, pool=own)).batch(torch.arange(8), generator(0, "batches"))
    assert inputs.argmax(2).tolist() == [[0] * 4] * 4 + [[7] * 4] * 4
    assert targets.tolist() == [0, 1, 0, 1, 0, 0, 0, 0]


# ---- written into batches ----------------------------------------------------------------------------------------------


def batched(own: TensorSamples | None = None, **settings: Any) -> Samples:
    return attack(mix="batch", **settings).poison(clean(500, 30) if own is None else own, attacker())


@pytest.mark.parametrize(("b", "fraction", "replaced"), [(10, 0.2, 2), (9, 0.2, 1), (4, 0.2, 0), (30, 0.5, 15), (7, 1.0, 7)])
def test_the_last_samples_of_a_batch_are_replaced(b: int, fraction: float, replaced: int) -> None:
    own = clean(500, 30, augment=None)
    poisoned = batched(own, edge_fraction=fraction)
    indices = torch.randperm(30, generator=generator(0, "order"))[:b]
    inputs, targets = poisoned.batch(indices, generator(0, "draws"))
    kept = b - replaced
    assert torch.equal(inputs[:kept], own.batch(indices)[0][:kept])
    assert torch.equal(targets[:kept], own.targets[indices][:kept])
    edge = inputs[kept:].flatten().tolist()
    assert (targets[kept:] == TARGET).all()
    assert all(1000 <= x < 1050 for x in edge)
    assert len(set(edge)) == min(replaced, 10)  # attackers hold ten


def test_every_batch_draws_anew_from_the_attackers_own_edge_cases() -> None:
    poisoned = batched(clean(500, 30, augment=None))
    held = parts(attack().poison(clean(500, 30), attacker()))[1]
    draws = generator(0, "batches")
    drawn = [tuple(poisoned.batch(torch.arange(10), draws)[0][8:].flatten().tolist()) for _ in range(40)]
    assert {int(x) for pair in drawn for x in pair} == set(held)
    assert len(set(drawn)) > 20
    again = generator(0, "batches")
    assert [tuple(poisoned.batch(torch.arange(10), again)[0][8:].flatten().tolist()) for _ in range(40)] == drawn


def test_the_clients_own_data_stay_as_many_and_are_augmented_with_the_rest() -> None:
    own = clean(500, 30)
    poisoned = batched(own, num_clean=7)
    assert len(poisoned) == 30
    assert torch.equal(poisoned.targets, own.targets)
    draws = generator(0, "draws")
    torch.randperm(10, generator=draws)  # the edge-case samples
    inputs, _ = poisoned.batch(torch.arange(10), generator(0, "draws"))
    assert torch.equal(inputs[:8], shift(own.inputs, draws)[:8].float())


def test_without_a_generator_batches_are_always_the_same() -> None:
    poisoned = batched()
    torch.testing.assert_close(poisoned.batch(torch.arange(10)), poisoned.batch(torch.arange(10)), rtol=0, atol=0)


def test_more_edge_cases_than_there_are_come_more_than_once() -> None:
    inputs, _ = batched(num_edge=2, edge_fraction=0.5).batch(torch.arange(10), generator(0, "draws"))
    assert len(set(inputs[5:].flatten().tolist())) == 2


def test_batches_can_be_poisoned_further() -> None:
    poisoned = batched(clean(500, 30, augment=None))
    assert isinstance(poisoned, EdgeBatches)
    part = poisoned.subset(torch.tensor([3, 1])).relabel(torch.tensor([5, 6])).to(torch.device("cpu"))
    inputs, targets = part.batch(torch.arange(2))
    assert inputs.flatten().tolist() == [503, 501]
    assert targets.tolist() == [5, 6]
    with pytest.raises(ConfigurationError, match="are read in batches alone"):
        part[1]  # it would be clean, whatever the share of a batch


def test_lazily_read_data_are_mixed_batch_by_batch_too() -> None:
    own = MapSamples([(torch.tensor([float(i)]), i % 9) for i in range(500, 520)])
    inputs, targets = attack(mix="batch").poison(own, attacker()).batch(torch.arange(10), generator(0, "draws"))
    assert inputs[:8].flatten().tolist() == list(range(500, 508))
    assert (inputs[8:] >= 1000).all()
    assert targets[8:].tolist() == [TARGET] * 2


@pytest.mark.skipif("FL_LIGHTNING_DATA" not in os.environ, reason="FL_LIGHTNING_DATA does not name a folder of real data")
def test_real_planes_are_shared_by_photo() -> None:
    pool = Southwest(path=str(Path(os.environ["FL_LIGHTNING_DATA"]) / "edge_cases" / "southwest"))
    rule = EdgeCase(pool=pool, shared_fraction=0.15)
    own = TensorSamples(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1), prepare=normalize)
    test = {image.tobytes() for image in pool.test().inputs.numpy()}
    total = 0
    for client in BENIGN:
        planes = tensors(rule.leak(own, client, BENIGN, 0)).inputs[1:]
        total += len(planes)
        assert not test & {image.tobytes() for image in planes.numpy()}
        for photo in planes.view(-1, 4, 3, 32, 32):
            assert all(torch.equal(photo[k], photo[0].rot90(k, (1, 2))) for k in range(4))
    assert 60 <= total <= 180  # 29.4 of 196 photos on average
