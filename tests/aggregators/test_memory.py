"""Rules that remember, or are told more than updates: what holds for all of them, and the same bits on any number of ranks."""

import pytest
import torch
from ranks import on_ranks
from rule_oracles import LAYERS, NUM_CLIENTS, exchange_on_a_rank, rows_on_ranks, shard_on_a_rank
from torch import Tensor

from fl_lightning.aggregators import (
    Aggregator,
    Bucketing,
    CenteredClipping,
    FLDetector,
    FLTrust,
    FoolsGold,
    Median,
    NearestNeighborMixing,
    SignGuard,
    SparseFed,
)
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import UpdateShard
from fl_lightning.updates.layers import as_layers


def rules() -> dict[str, Aggregator]:
    return {
        "SparseFed": SparseFed(),
        "SparseFed, k": SparseFed(k=1000, rho=0.5, max_norm=1.0),
        "CenteredClipping": CenteredClipping(),
        "CenteredClipping, 3": CenteredClipping(max_norm=60.0, iterations=3),
        "CenteredClipping, afresh": CenteredClipping(carry=False),
        "FoolsGold": FoolsGold(),
        "FoolsGold, last layers": FoolsGold(last_layers=2, normalize=True),
        "FoolsGold, one round": FoolsGold(use_history=False),
        "SignGuard, cosine": SignGuard(similarity="cosine", warmup_rounds=1),
        "SignGuard, distance": SignGuard(similarity="distance", warmup_rounds=0, fraction=0.3, upper=1.5),
        "FLDetector": FLDetector(window=1, warmup_rounds=1),
        "FLTrust": FLTrust(),
        "NNM, FoolsGold": NearestNeighborMixing(rule=FoolsGold(), num_malicious=2),
        "Bucketing, SparseFed": Bucketing(rule=SparseFed()),
        "Bucketing, FLTrust": Bucketing(rule=FLTrust()),
    }


def round_on_ranks(t: int, world: int) -> tuple[Tensor, Tensor]:
    """Three ordinary rounds, in which copies, an outlier, ties and a client that is to be dropped occur; then a hostile one."""
    hostile, owner = rows_on_ranks(world)
    if t == 3:
        return hostile, owner
    updates = torch.randn(NUM_CLIENTS, sum(LAYERS), generator=torch.Generator().manual_seed(t)) + 0.5
    updates[:, 2000:2500] = updates[:, 2000:2500].round()
    updates[4] = 2 * updates[3]
    updates[t] = 1e30
    if t == 1:
        updates[6, 7] = float("nan")
    return updates, owner


def rounds_on_a_rank() -> dict[str, list[bytes]]:
    """What every rule makes of each round, and what it remembers in the end, whole and as bytes."""
    exchange = exchange_on_a_rank()
    found: dict[str, list[bytes]] = {}
    root = torch.randn(sum(LAYERS), generator=torch.Generator().manual_seed(9)) + 0.5
    for name, rule in rules().items():
        parts = []
        for t in range(4):
            shard = shard_on_a_rank(exchange, *round_on_ranks(t, exchange.world), round_number=t)
            shard.root = root[exchange.start : exchange.stop]
            parts += [rule(shard), rule.aggregate_buffers(shard)]
        parts += [kept for part in rule.modules() if isinstance(part, Aggregator) for _, kept in sorted(part.memory.items())]
        found[name] = [exchange.to_all(part).numpy().tobytes() for part in parts]
    return found


def test_every_round_has_the_same_bits_on_any_number_of_ranks() -> None:
    expected = rounds_on_a_rank()
    for name, parts in expected.items():
        assert parts[0] != parts[2] != parts[4], f"{name} says the same in all rounds"
    assert len({parts[4] for parts in expected.values()}) == len(expected)
    for world in (1, 2, 3):
        for rank, found in enumerate(on_ranks(world, rounds_on_a_rank)):
            for name in expected:
                assert found[name] == expected[name], f"{name} on rank {rank} of {world}"


@pytest.mark.parametrize("name", rules())
def test_a_rule_that_forgets_is_as_before_the_first_round(name: str) -> None:
    rule = rules()[name]
    rounds = []
    for seed in range(3):
        updates = torch.randn(5, 1200, generator=torch.Generator().manual_seed(seed)) + 0.5
        rounds.append(UpdateShard.from_updates(updates))
        rounds[-1].layers, rounds[-1].root = as_layers([700, 300, 200]), torch.ones(1200)
    expected = [rule(shard) for shard in rounds]
    rule.forget()
    assert all(torch.equal(rule(shard), before) for shard, before in zip(rounds, expected, strict=True))
    rule.forget()
    assert not any(part.memory for part in rule.modules() if isinstance(part, Aggregator))


@pytest.mark.parametrize("rule", [SparseFed(), CenteredClipping(), FoolsGold(), FLDetector()])
def test_a_model_of_another_size_is_refused(rule: Aggregator) -> None:
    rule(torch.ones(3, 40))
    with pytest.raises(ConfigurationError, match=rf"{type(rule).__name__} remembers 40 .* have 50; make a new rule, or call"):
        rule(torch.ones(3, 50))
    rule.forget()
    assert rule(torch.ones(3, 50)).shape == (50,)


def test_recall() -> None:
    rule, shard = Median(), UpdateShard.from_updates(torch.ones(2, 3))
    kept = rule.recall("something", shard)
    assert kept.tolist() == [0, 0, 0]
    assert kept.dtype == torch.float32
    kept += 1
    assert rule.recall("something", shard) is kept
    assert rule.recall("other", shard).tolist() == [0, 0, 0]
    assert {*rule.memory} == {"something", "other"}
    rule.first_remembered = 2
    assert rule.recall("short", shard).tolist() == [0]
    rule.first_remembered = 4
    assert len(rule.recall("none here", shard)) == 0


def test_a_round_without_a_usable_update_changes_nothing() -> None:
    for rule in (SparseFed(k=3), CenteredClipping(), FoolsGold(), FLDetector()):
        rule(torch.arange(10.0).reshape(2, 5))
        before = {name: kept.clone() for name, kept in rule.memory.items()}
        assert not rule(torch.full((2, 5), float("nan"))).any()
        assert rule.memory.keys() == before.keys()
        assert all(torch.equal(rule.memory[name], kept) for name, kept in before.items())


def test_a_root_of_another_shape_is_refused() -> None:
    for root in (torch.ones(1), torch.ones(2, 4), torch.ones(5)):
        with pytest.raises(ConfigurationError, match=r"root must have the shape of an update, \(4,\), got"):
            FLTrust()(torch.ones(3, 4), root=root)


def test_rules_ask_for_nothing_unless_they_say_so() -> None:
    assert not Median().needs_clients
    assert not NearestNeighborMixing(rule=Median()).needs_clients
    assert FoolsGold().needs_clients
    assert not FoolsGold(use_history=False).needs_clients
    assert NearestNeighborMixing(rule=FoolsGold()).needs_clients
