"""Poisoning batch by batch: how many of a batch, which of them, and that the data themselves stay clean."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import fit, tiny_federation
from worlds import images

from fl_lightning.attacks import (
    A3FL,
    DBA,
    Attack,
    Attacker,
    Collude,
    EdgeCase,
    LabelFlip,
    PixelTrigger,
    TabularDBA,
    ValueTrigger,
)
from fl_lightning.attacks.base import stamped_sets
from fl_lightning.attacks.poisoning import PoisonedBatches
from fl_lightning.data import MapSamples, RotatedDigits, Samples, TensorSamples
from fl_lightning.data.sample_form import form
from fl_lightning.errors import ConfigurationError

DRAWS = torch.Generator


def attacker_of(data: Samples, client: int = 0) -> Attacker:
    return Attacker(client=client, seed=0, pool=data)


def table(n: int = 40) -> TensorSamples:
    inputs = torch.arange(float(4 * n)).view(n, 4)
    return TensorSamples(inputs, torch.arange(n) % 3)


@settings(deadline=None, max_examples=60)
@given(st.floats(0.001, 1), st.integers(1, 70), st.integers(0, 9))
def test_the_first_of_every_batch_and_no_others(share, b, seed):
    data = table(70)
    found = LabelFlip(mode="reverse", poison_fraction=share, per_batch=True)
    found.validate(10)
    poisoned = found.poison(data, attacker_of(data))
    order = torch.randperm(70, generator=DRAWS().manual_seed(seed))[:b]
    inputs, targets = poisoned.batch(order)
    count = int(share * b + 1e-9)
    assert torch.equal(inputs, data.inputs[order])
    assert targets[:count].tolist() == (9 - data.targets[order[:count]]).tolist()
    assert targets[count:].tolist() == data.targets[order[count:]].tolist()
    assert torch.equal(poisoned.targets, data.targets)


@pytest.mark.parametrize(
    ("share", "b", "count"), [(0.29, 100, 29), (5 / 64, 64, 5), (0.3125, 64, 20), (0.2, 4, 0), (1.0, 7, 7)]
)
def test_published_shares(share, b, count):
    data = images(100)
    poisoned = PixelTrigger(poison_fraction=share, per_batch=True, target_label=0).poison(data, attacker_of(data))
    pictures, _ = poisoned.batch(torch.arange(100)[:b])
    painted = (pictures[:, :, :3, :3] == 255).flatten(1).all(1)
    assert painted.tolist() == [True] * count + [False] * (b - count)


def test_of_the_samples_that_the_attack_applies_to():
    data = table()
    poisoned = ValueTrigger(column=2, value=-1.0, poison_fraction=0.5, per_batch=True).poison(data, attacker_of(data))
    order = torch.tensor([0, 4, 7, 2, 10, 13, 1, 3])  # classes 0 1 1 2 1 1 1 0: of the five ones the first two
    inputs, targets = poisoned.batch(order)
    assert (inputs[:, 2] == -1).tolist() == [False, True, True, False, False, False, False, False]
    assert targets.tolist() == [0, 0, 0, 2, 1, 1, 1, 0]


def test_a_shuffle_makes_them_others_and_the_same_shuffle_the_same():
    data = images(40)
    poisoned = PixelTrigger(poison_fraction=0.25, per_batch=True).poison(data, attacker_of(data))

    def painted(seed: int) -> set[int]:
        order = torch.randperm(40, generator=DRAWS().manual_seed(seed))
        pictures = torch.cat([batch[0] for batch in poisoned.batches(order, [8] * 5)])
        return set(order[(pictures[:, :, :3, :3] == 255).flatten(1).all(1)].tolist())

    assert painted(1) == painted(1)
    assert painted(1) != painted(2)
    assert len(painted(1)) == len(painted(2)) == 10


@pytest.mark.parametrize(
    "attack",
    [
        PixelTrigger(per_batch=True),
        DBA(strip_length=2, gap=1, per_batch=True, poison_fraction=0.2),
        A3FL(height=2, width=2, per_batch=True),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_attacks_on_pictures(attack):
    data = images(40)
    pictures, targets = attack.poison(data, attacker_of(data)).batch(torch.arange(40))
    count = int(attack.poison_fraction * 40)
    assert (targets[:count] == attack.target_label).all()
    assert torch.equal(targets[count:], data.targets[count:])
    changed = (pictures != data.inputs).flatten(1).any(1)
    assert changed.tolist() == [True] * count + [False] * (40 - count)


def test_attackers_write_their_own_part_of_a_table():
    data = table()
    attack = TabularDBA(columns=[0, 3], values=[-1.0, -2.0], poison_fraction=1.0, per_batch=True)
    second = attack.poison(data, Attacker(client=5, seed=0, pool=data, index=1))
    inputs, _ = second.batch(torch.tensor([1, 2]))
    assert inputs[:, 3].tolist() == [-2.0, 11.0]


def test_samples_that_are_read_one_by_one():
    data = MapSamples([(torch.full((3,), float(i)), i % 4) for i in range(12)], torch.arange(12) % 4)
    attack = LabelFlip(mode="all_to_one", target_label=3, poison_fraction=0.5, per_batch=True)
    attack.validate(4)
    _, targets = attack.poison(data, attacker_of(data)).batch(torch.arange(4))
    assert targets.tolist() == [3, 1, 2, 3]  # of three that are not class 3 the first


def test_two_attacks_take_the_head_and_what_follows():
    data = images(40)
    first = PixelTrigger(poison_fraction=0.25, target_label=1, per_batch=True)
    second = PixelTrigger(row=5, column=5, poison_fraction=0.25, target_label=2, per_batch=True)
    both = second.poison(first.poison(data, attacker_of(data)), attacker_of(data))
    pictures, targets = both.batch(torch.arange(8))
    assert (pictures[:, :, :3, :3] == 255).flatten(1).all(1).tolist() == [True] * 2 + [False] * 6
    assert (pictures[:, :, 5:, 5:] == 255).flatten(1).all(1).tolist() == [False] * 2 + [True] + [False] * 5
    assert targets.tolist() == [1, 1, 2, 3, 0, 1, 2, 3]


def test_colluders_pool_their_data_and_keep_the_share():
    parts = [images(12), images(20), images(8).subset(torch.empty(0, dtype=torch.int64))]
    attack = PixelTrigger(poison_fraction=0.25, per_batch=True)
    poisoned = [attack.poison(part, attacker_of(part, i)) for i, part in enumerate(parts)]
    pool, *others = Collude().conspire(poisoned, [attacker_of(parts[0], i) for i in range(3)])
    assert [len(pool), *map(len, others)] == [32, 0, 0]
    pictures, _ = pool.batch(torch.tensor([31, 0, 12, 11, 5, 20, 13, 1]))
    assert (pictures[:, :, :3, :3] == 255).flatten(1).all(1).tolist() == [True] * 2 + [False] * 6
    assert isinstance(pool, PoisonedBatches)


def test_it_is_read_in_batches_alone():
    data = images(12, (1, 8, 8))
    poisoned = PixelTrigger(per_batch=True).poison(data, attacker_of(data))
    with pytest.raises(ConfigurationError, match=r"poisoned batch by batch \(per_batch\) are read in batches alone"):
        form(poisoned[0])
    edge = EdgeCase(pool=RotatedDigits(digit=1), target_label=7, num_edge=2, num_clean=4)
    with pytest.raises(ConfigurationError, match="put attacks that bring samples of their own before"):
        edge.poison(poisoned, attacker_of(data))


def test_verbs_keep_both_sides():
    data = images(40)
    poisoned = PixelTrigger(poison_fraction=0.5, target_label=1, per_batch=True).poison(data, attacker_of(data))
    part = poisoned.subset(torch.tensor([7, 2, 9, 30])).to(torch.device("cpu"))
    pictures, targets = part.batch(torch.tensor([3, 0, 1, 2]))
    assert (pictures[:, :, :3, :3] == 255).flatten(1).all(1).tolist() == [True, True, False, False]
    assert targets.tolist() == [1, 1, 2, 1]
    relabelled = poisoned.relabel(torch.full_like(data.targets, 3))
    assert relabelled.batch(torch.arange(4))[1].tolist() == [1, 1, 3, 3]
    raw = poisoned.raw(torch.arange(3))
    assert raw is not None
    assert torch.equal(raw, data.inputs[:3])


def test_an_attack_that_gives_no_data_is_named():
    class Forgets(Attack):
        def poison(self, dataset, attacker) -> Any:
            pass

    class One(Attack):
        def conspire(self, datasets, attackers):
            return datasets[:1]

    for attack, said in (
        (Forgets(), r"Forgets\.poison must return Samples.*got a NoneType"),
        (One(), r"One\.conspire.*got 1;"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            fit(tiny_federation(attacks=[attack]), rounds=1)


def test_of_a_stamped_set_without_samples_nothing_is_measured():
    class Nobody(Attack):
        def stamp(self, test):
            return test.subset(torch.tensor([], dtype=torch.int64))

    test = images(4)
    assert stamped_sets([Nobody()], test) == {}
    assert (
        len(stamped_sets([Nobody(), LabelFlip(source_label=int(test.targets[0]), target_label=int(test.targets[0]) + 1)], test))
        == 1
    )
