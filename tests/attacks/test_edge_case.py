"""The edge-case attack: what attackers train on, what the attack is measured on, who draws what, and who else gets some."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from effect import on_digits
from ranks import on_ranks
from tiny import CLIENTS, tiny_federation
from worlds import Made, digest_and_metrics, same_on_any_number_of_ranks

from fl_lightning.attacks.base import Attacker
from fl_lightning.attacks.edge_case import EdgeBatches, EdgeCase
from fl_lightning.data import IID, Digits, MapSamples, RotatedDigits, Samples, Southwest, TensorSamples
from fl_lightning.data.cifar10 import normalize
from fl_lightning.data.edge_pool import EdgePool
from fl_lightning.errors import ConfigurationError
from fl_lightning.models import CNN
from fl_lightning.seeding import generator

TARGET = 9


def scale(images: torch.Tensor) -> torch.Tensor:
    return images.float()


def shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return images + int(torch.randint(1, 9, (1,), generator=generator))


class Pool(EdgePool):
    """Inputs are numbers from 1000 (training) and 2000 (test) on, so that each can be told."""

    def __init__(self, n: int = 50, labels: tuple[int, ...] = (0,), device: str = "cpu", group_size: int = 1) -> None:
        self.label = labels[0] if len(labels) == 1 else None
        self.group_size = group_size
        self.prepared = 0
        self.parts = [
            TensorSamples(
                torch.arange(first, first + count, device=device).view(count, 1),
                torch.tensor(labels, device=device).repeat(count)[:count],
                augment=shift,
                prepare=scale,
            )
            for first, count in ((1000, n), (2000, 12))
        ]

    def prepare(self) -> None:
        self.prepared += 1

    def train(self) -> TensorSamples:
        return self.parts[0]

    def test(self) -> TensorSamples:
        return self.parts[1]


def clean(first: int, n: int, augment=shift, device: str = "cpu") -> TensorSamples:
    """n samples with inputs from `first` on, of class input mod 9."""
    inputs = torch.arange(first, first + n, device=device)
    return TensorSamples(inputs.view(n, 1), inputs % 9, augment=augment, prepare=scale)


def attacker(client: int = 0, seed: int = 0, device: str = "cpu") -> Attacker:
    return Attacker(client=client, seed=seed, pool=clean(0, 300, device=device))


def attack(**settings: Any) -> EdgeCase:
    chosen: dict[str, Any] = {"pool": Pool(), "target_label": TARGET, "num_edge": 10, "num_clean": 40, **settings}
    return EdgeCase(**chosen)


def tensors(samples: Samples | None) -> TensorSamples:
    assert isinstance(samples, TensorSamples)
    return samples


def parts(poisoned: Samples) -> tuple[list[int], list[int]]:
    """Clean inputs and edge-case inputs, in order, after a check of their labels."""
    inputs, targets = tensors(poisoned).inputs.flatten(), poisoned.targets
    edge = inputs >= 1000
    assert (targets[edge] == TARGET).all()
    assert torch.equal(targets[~edge], inputs[~edge] % 9)
    return inputs[~edge].tolist(), inputs[edge].tolist()


@pytest.mark.parametrize("size", [1, 39, 40, 41, 200])
def test_poisoned_data_has_its_size_whatever_the_clients(size: int) -> None:
    own = clean(100, size)
    kept, edge = parts(attack().poison(own, attacker()))
    assert len(kept) == 40
    assert len(edge) == 10
    assert len(set(edge)) == 10
    assert all(1000 <= x < 1050 for x in edge)


def test_own_samples_come_first_and_are_topped_up_from_everyones() -> None:
    kept, _ = parts(attack().poison(clean(500, 15), attacker()))
    assert kept[:15] == list(range(500, 515))
    assert len(set(kept[15:])) == 25
    assert all(x < 300 for x in kept[15:])


def test_the_top_up_is_spread_over_the_whole_training_set() -> None:
    drawn = {x for client in range(60) for x in parts(attack().poison(clean(500, 1), attacker(client)))[0][1:]}
    assert len(drawn) > 290


def test_a_large_client_trains_on_a_random_part_of_its_own() -> None:
    kept, _ = parts(attack().poison(clean(500, 200), attacker()))
    assert len(set(kept)) == 40
    assert all(500 <= x < 700 for x in kept)
    assert max(kept) > 600  # not the first 40
    assert min(kept) < 600


def test_edge_cases_are_shared_by_attackers_and_clean_samples_are_not() -> None:
    own = clean(500, 5)
    one, other = (parts(attack().poison(own, attacker(client))) for client in (3, 4))
    assert one[1] == other[1]
    assert one[0] != other[0]


def test_poison_depends_on_seed_and_client_alone() -> None:
    own, rule = clean(500, 5), attack()
    first = parts(rule.poison(own, attacker(seed=1)))
    torch.manual_seed(5)
    rule.poison(own, attacker(client=7, seed=2))
    assert parts(rule.poison(own, attacker(seed=1))) == first
    assert parts(attack().poison(own, attacker(seed=1))) == first
    other = parts(rule.poison(own, attacker(seed=2)))
    assert other[0] != first[0]
    assert other[1] != first[1]


def test_inputs_are_left_as_they_were() -> None:
    pool, own, everyone = Pool(), clean(500, 5), attacker()
    before = [x.clone() for x in (pool.train().inputs, pool.train().targets, own.targets, everyone.pool.targets)]
    attack(pool=pool).poison(own, everyone)
    attack(pool=pool).stamp(own)
    after = (pool.train().inputs, pool.train().targets, own.targets, everyone.pool.targets)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_edge_cases_alone() -> None:
    kept, edge = parts(attack(num_clean=0).poison(clean(500, 5), attacker()))
    assert kept == []
    assert len(edge) == 10


@pytest.mark.parametrize("augment", [shift, None])
def test_edge_cases_are_augmented_as_the_clients_own_data(augment) -> None:
    own = clean(500, 40, augment=augment)
    poisoned = tensors(attack().poison(own, attacker()))
    assert poisoned.augment is augment
    assert poisoned.prepare is scale


def test_data_that_is_read_lazily_is_poisoned_too() -> None:
    own = MapSamples([(torch.tensor([float(i)]), i % 9) for i in range(500, 505)])
    whole = MapSamples([(torch.tensor([float(i)]), i % 9) for i in range(300)])
    poisoned = attack().poison(own, Attacker(client=0, seed=0, pool=whole))
    inputs, targets = poisoned.batch(torch.arange(50))
    assert len(poisoned) == 50
    assert inputs[:5].flatten().tolist() == [500, 501, 502, 503, 504]
    assert (inputs[40:] >= 1000).all()
    assert (targets[40:] == TARGET).all()


def test_stamp_is_the_pools_test_part_under_the_target_label() -> None:
    stamped = tensors(attack().stamp(clean(0, 30)))
    assert stamped.inputs.flatten().tolist() == list(range(2000, 2012))
    assert (stamped.targets == TARGET).all()


def test_stamp_leaves_out_samples_of_the_target_class() -> None:
    stamped = tensors(attack(pool=Pool(labels=(0, TARGET, 4))).stamp(clean(0, 30)))
    assert stamped.inputs.flatten().tolist() == [i for i in range(2000, 2012) if (i - 2000) % 3 != 1]
    assert attack(pool=Pool(labels=(TARGET,))).stamp(clean(0, 30)) is None


def test_labels_under_attack_are_told() -> None:
    assert attack().target_label == TARGET
    assert attack().source_label == 0
    assert attack(pool=Pool(labels=(1, 2))).source_label is None


def test_prepare_prepares_the_pool() -> None:
    pool = Pool()
    attack(pool=pool).prepare()
    assert pool.prepared == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_label": 10}, "target_label must be from 0 to 9, .* got 10"),
        ({"target_label": -1}, "target_label must be from 0 to 9, .* got -1"),
        ({"target_label": 0}, "target_label is 0, which is a true label"),
        ({"num_edge": 51}, "num_edge is 51, but the pool holds only 50"),
        ({"pool": Pool(labels=(0, 12))}, r"true labels \[0, 12\]"),
        (
            {"num_edge": 46, "shared_fraction": 0.1, "sharing": "move"},
            r"num_edge is 46, .*50 training samples, of which .*shared_fraction = 0\.1 moves 5 .*at most 45, or a lower share",
        ),
    ],
)
def test_validate_refuses(settings: dict, message: str) -> None:
    rule = attack(**settings)
    with pytest.raises(ConfigurationError, match=message):
        rule.validate(num_classes=10)


def test_validate_accepts_the_whole_pool() -> None:
    assert attack(num_edge=50).validate(num_classes=10) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_edge": 0}, "num_edge"),
        ({"num_clean": -1}, "num_clean"),
        ({"mix": "batches"}, "mix must be dataset or batch, got 'batches'"),
        ({"sharing": "lend"}, "sharing must be copy or move, got 'lend'"),
        ({"shared_fraction": -0.1}, r"shared_fraction must lie in \[0, 1\], got -0\.1"),
        ({"shared_fraction": 1.1}, r"shared_fraction must lie in \[0, 1\], got 1\.1"),
        ({"shared_fraction": float("nan")}, r"shared_fraction must lie in \[0, 1\], got nan"),
        ({"mix": "batch", "edge_fraction": 0.0}, "edge_fraction must be more than 0 and at most 1"),
        ({"edge_fraction": 0.3}, "edge_fraction is 0.3, but is for mix: batch alone"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        attack(**settings)


def test_a_training_set_too_small_to_top_up_from_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="client 0 has 5 samples and the training set only 300"):
        attack(num_clean=306).poison(clean(500, 5), attacker())


def test_a_pool_made_for_another_task_is_refused() -> None:
    images = TensorSamples(torch.zeros(5, 3, 8, 8), torch.arange(5))
    with pytest.raises(ConfigurationError, match=r"shape \(1,\), but the task's are \(3, 8, 8\)"):
        attack().poison(images, Attacker(client=0, seed=0, pool=clean(0, 300)))
    with pytest.raises(ConfigurationError, match="use a pool made for this task"):
        attack().stamp(images)


# ---- drawn anew in every round -----------------------------------------------------------------------------------------


def edge_in_round(rule: EdgeCase, t: int, client: int = 0) -> list[int]:
    who = Attacker(client=client, seed=0, pool=clean(0, 300), round_number=t)
    return parts(rule.poison(clean(500, 5), who))[1]


def test_edge_cases_stay_the_same_unless_they_are_redrawn() -> None:
    fixed, redrawn = attack(), attack(redraw=True)
    assert edge_in_round(fixed, 0) == edge_in_round(fixed, 7)
    assert edge_in_round(redrawn, 7) == edge_in_round(redrawn, 7, client=3)  # still shared by all attackers
    assert len({tuple(edge_in_round(redrawn, t)) for t in range(20)}) == 20
    assert {x for t in range(30) for x in edge_in_round(redrawn, t)} == set(range(1000, 1050))


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
    assert part[1][0].tolist() == [501]


def test_lazily_read_data_are_mixed_batch_by_batch_too() -> None:
    own = MapSamples([(torch.tensor([float(i)]), i % 9) for i in range(500, 520)])
    inputs, targets = attack(mix="batch").poison(own, attacker()).batch(torch.arange(10), generator(0, "draws"))
    assert inputs[:8].flatten().tolist() == list(range(500, 508))
    assert (inputs[8:] >= 1000).all()
    assert targets[8:].tolist() == [TARGET] * 2


# ---- in a federation ---------------------------------------------------------------------------------------------------


def digits_federation(**settings: Any) -> Made:
    client = CNN(in_channels=1, image_size=8, channels=(4,), hidden=8, num_classes=10)
    rule = EdgeCase(pool=RotatedDigits(), target_label=7, num_edge=20, num_clean=30, **settings)
    return tiny_federation(client=client, attacks=[rule]), Digits(IID(num_clients=CLIENTS))


def plain() -> Made:
    return digits_federation()


def shared() -> Made:
    return digits_federation(shared_fraction=0.3, redraw=True)


def mixed() -> Made:
    return digits_federation(mix="batch", shared_fraction=0.3, sharing="move")


@pytest.mark.parametrize("make", [shared, mixed])
def test_same_bits_on_any_number_of_ranks(make) -> None:
    same_on_any_number_of_ranks(make)
    ((found, _),), ((otherwise, _),) = (on_ranks(1, digest_and_metrics, 1, of, 2) for of in (make, plain))
    assert found != otherwise


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_federated_averaging_learns_edge_cases_and_unlearns_shared_ones(seed: int) -> None:
    """ASR of the three seeds: at most .03 attack-free, at least .92, .86 batch by batch, and at most .50 with p = .3."""

    def after(malicious: float = 0.2, **settings: Any) -> dict[str, float]:
        rule = EdgeCase(pool=RotatedDigits(digit=1), target_label=7, num_edge=20, num_clean=50, **settings)
        return on_digits(rule, malicious=malicious, seed=seed)

    honest, attacked, batch, shared = after(0.0), after(), after(mix="batch"), after(shared_fraction=0.3)
    assert honest["asr"] < 0.05
    assert min(attacked["asr"], batch["asr"]) > 0.75
    assert shared["asr"] < attacked["asr"] - 0.2
    assert min(found["acc"] for found in (attacked, batch, shared)) > honest["acc"] - 0.03 > 0.88


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_samples_follow_the_clients_device() -> None:
    poisoned = tensors(attack().poison(clean(500, 5, device="cuda"), attacker(device="cuda")))
    assert poisoned.inputs.is_cuda
    assert poisoned.targets.is_cuda
    assert parts(poisoned) == parts(attack().poison(clean(500, 5), attacker()))
    assert tensors(attack().stamp(clean(0, 5, device="cuda"))).inputs.is_cuda


def test_a_pool_that_makes_other_model_inputs_is_refused():
    """As tweets do that are read with vectors of another dimension than the task's."""
    task = TensorSamples(torch.zeros(40, 1, 8, 8), torch.zeros(40, dtype=torch.int64), prepare=torch.neg)
    attack = EdgeCase(pool=RotatedDigits(digit=1), target_label=7, num_edge=4, num_clean=8)
    with pytest.raises(ConfigurationError, match=r"EdgeCase.pool makes model inputs by .*, but the task by .*neg"):
        attack.poison(task, Attacker(client=0, seed=0, pool=task))
