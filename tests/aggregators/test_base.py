"""What holds for every rule: equal to its oracle, blind to non-finite clients, and the same bits on any number of ranks."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from rule_oracles import LAYERS, NUM_CLIENTS, RULES, assert_is, hostile_updates, rows_on_ranks, rules_on_a_rank
from torch import Tensor

from fl_lightning.aggregators import Aggregator, AndMask, FedAvg
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import UpdateShard

NAN, INF = float("nan"), float("inf")
BLIND_TO_ORDER = {name for name in RULES if name.startswith(("Median", "TrimmedMean", "Invariant"))}

each_rule = pytest.mark.parametrize("name", RULES)


def some_weights(n: int) -> Tensor:
    return torch.randint(1, 500, (n,), generator=torch.Generator().manual_seed(n)).float()


def shard_of(updates: Tensor, weights: Tensor, layers: list[int]) -> UpdateShard:
    n, d = updates.shape
    return UpdateShard([updates], weights, torch.zeros(n).bool(), num_coordinates=d, layers=layers)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


# ---- against the oracles ---------------------------------------------------------------------------------------------


@each_rule
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 10, 15, 20, 33])
def test_rule_is_its_oracle(name: str, n: int) -> None:
    rule, oracle, buffers = RULES[name]
    updates, weights, layers = hostile_updates(n), some_weights(n), [70, 1, 89]
    before = updates.clone()
    shard = shard_of(updates, weights, layers)
    assert_is(rule(shard), oracle(updates.numpy(), weights.tolist(), layers))
    assert_is(rule.aggregate_buffers(shard), buffers(updates.numpy(), weights.tolist(), layers))
    assert torch.equal(updates, before)


@each_rule
def test_a_plain_tensor_is_one_shard_of_one_layer(name: str) -> None:
    rule, oracle, _ = RULES[name]
    updates, weights = hostile_updates(9), some_weights(9)
    assert_is(rule(updates, weights), oracle(updates.numpy(), weights.tolist(), [160]))
    assert_is(rule(updates), oracle(updates.numpy(), [1.0] * 9, [160]))
    assert torch.equal(rule(updates.double(), weights.long()), rule(updates, weights))
    assert torch.equal(rule(updates, weights), rule(UpdateShard.from_updates(updates, weights)))


@each_rule
def test_mask_is_what_the_rule_lets_move(name: str) -> None:
    rule, _, _ = RULES[name]
    updates = hostile_updates(10)
    shard = UpdateShard.from_updates(updates)
    mask = rule.mask(shard)
    assert mask.dtype == torch.bool
    assert mask.shape == (160,)
    assert not rule(shard)[~mask].any()
    if name.startswith(("AndMask", "Invariant")):
        assert 0 < mask.sum() < 160
        assert rule.aggregate_buffers(shard)[~mask].any()  # buffers pass no mask
    else:
        assert mask.all()


@each_rule
@pytest.mark.parametrize("d", [0, 1, 3, 1000])
def test_width(name: str, d: int) -> None:
    rule, _, _ = RULES[name]
    updates = hostile_updates(5)[:, :1].expand(5, d)
    result = rule(updates)
    assert result.shape == (d,)
    assert torch.equal(result, rule(updates[:, :1]).expand(d)) if d else result.shape == (0,)


# ---- clients that are not finite -------------------------------------------------------------------------------------


@each_rule
@pytest.mark.parametrize("bad", [[0], [3], [0, 1, 6]])
def test_rows_that_are_not_finite_are_left_out(name: str, bad: list[int]) -> None:
    rule, _, _ = RULES[name]
    updates, weights = hostile_updates(7), some_weights(7)
    good = [client for client in range(7) if client not in bad]
    for row, value in zip(bad, [NAN, INF, -INF], strict=False):
        updates[row, 17 * row + 3] = value
    assert bits(rule(updates, weights)) == bits(rule(updates[good], weights[good]))
    assert rule(updates, weights).isfinite().all()


@each_rule
def test_nothing_is_left(name: str) -> None:
    rule, _, _ = RULES[name]
    for updates in (torch.tensor([[NAN, 1.0, 2.0], [1.0, INF, 2.0]]), torch.empty(0, 3)):
        result = rule(updates)
        assert torch.equal(result, torch.zeros(3))
        assert result.dtype == torch.float32


# ---- properties ------------------------------------------------------------------------------------------------------

ORDINARY = st.floats(width=32, min_value=2.0**-20, max_value=2.0**40)
ENTRIES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e30, -1e30]) | ORDINARY | ORDINARY.map(lambda value: -value)


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    n, d = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    return torch.tensor(draw(st.lists(st.lists(ENTRIES, min_size=d, max_size=d), min_size=n, max_size=n)))


def rounding(updates: Tensor) -> Tensor:
    """What float32 sums over the clients may differ by, for rules that trim nothing."""
    return (len(updates) + 3) * 2.0**-23 * updates.abs().double().amax(0)


def each_case(function):
    return each_rule(settings(deadline=None, max_examples=25)(function))


@each_case
@given(updates=matrices(), data=st.data())
def test_order_of_clients_does_not_matter(name: str, updates: Tensor, data: st.DataObject) -> None:
    rule, _, _ = RULES[name]
    order = torch.tensor(data.draw(st.permutations(range(len(updates)))))
    weights = some_weights(len(updates))
    one, other = rule(updates, weights), rule(updates[order], weights[order])
    if name in BLIND_TO_ORDER:
        assert bits(one) == bits(other)
    else:
        assert ((one - other).abs() <= 2 * rescaled(rule, updates) * rounding(updates)).all()
    mask, moved = (rule.mask(UpdateShard.from_updates(rows)) for rows in (updates, updates[order]))
    assert torch.equal(mask, moved)


def rescaled(rule: Aggregator, updates: Tensor) -> float:
    """The most that a rule may blow its mean up by: a layer of which a single coordinate is kept."""
    return updates.shape[1] if getattr(rule, "rescale", False) else 1.0


@each_case
@given(updates=matrices())
def test_oddness(name: str, updates: Tensor) -> None:
    rule, _, _ = RULES[name]
    weights = some_weights(len(updates))
    difference = rule(-updates, weights) + rule(updates, weights)
    assert (difference.abs() <= 2 * rescaled(rule, updates) * rounding(updates)).all()
    if name == "Median":
        assert not difference.any()


@each_case
@given(updates=matrices(), power=st.integers(-20, 20))
def test_positive_homogeneity(name: str, updates: Tensor, power: int) -> None:
    rule, _, _ = RULES[name]
    weights = some_weights(len(updates))
    assert torch.equal(rule(updates * 2.0**power, weights), rule(updates, weights) * 2.0**power)


@each_case
@given(updates=matrices())
def test_output_lies_within_the_column_or_is_masked(name: str, updates: Tensor) -> None:
    rule, _, _ = RULES[name]
    if getattr(rule, "rescale", False):
        return  # a longer step is what that option is for
    result, slack = rule(updates, some_weights(len(updates))).double(), rounding(updates)
    inside = (result >= updates.amin(0) - slack) & (result <= updates.amax(0) + slack)
    assert (inside | ~rule.mask(UpdateShard.from_updates(updates))).all()


@each_case
@given(updates=matrices(), data=st.data())
def test_mask_does_not_know_how_loud_a_client_is(name: str, updates: Tensor, data: st.DataObject) -> None:
    rule, _, _ = RULES[name]
    powers = data.draw(st.lists(st.integers(-20, 20), min_size=len(updates), max_size=len(updates)))
    louder = updates * 2.0 ** torch.tensor(powers)[:, None]
    assert torch.equal(*(rule.mask(UpdateShard.from_updates(rows)) for rows in (updates, louder)))


@pytest.mark.parametrize("name", sorted(BLIND_TO_ORDER - {"TrimmedMean, 0"}))
def test_rules_that_hold_against_few_do_not_care_for_their_size(name: str) -> None:
    rule, _, _ = RULES[name]
    updates = torch.randn(10, 50, generator=torch.Generator().manual_seed(0))
    updates[0] = updates[0].sign() * 10  # one attacker, beyond the others already
    assert bits(rule(updates)) == bits(rule(updates * torch.tensor([1e29] + [1.0] * 9)[:, None]))


# ---- ranks -----------------------------------------------------------------------------------------------------------


def test_every_rule_has_the_same_bits_on_any_number_of_ranks() -> None:
    updates, _ = rows_on_ranks(1)
    finite = updates.isfinite().all(dim=1)
    assert finite.sum() == NUM_CLIENTS - 2
    shard = shard_of(updates[finite], torch.arange(1.0, NUM_CLIENTS + 1)[finite], LAYERS)
    expected = {
        name: [bits(part) for part in (rule(shard), rule.mask(shard), rule.aggregate_buffers(shard))]
        for name, (rule, _, _) in RULES.items()
    }
    for world in (1, 2, 3, 4):
        for rank, found in enumerate(on_ranks(world, rules_on_a_rank)):
            for name, (aggregate, mask, buffers) in expected.items():
                where = f"{name} on rank {rank} of {world}"
                assert found[name][0] == aggregate, where
                assert found[name][1] == mask, where
                assert found[name][2] == buffers, where


# ---- the base class --------------------------------------------------------------------------------------------------


def test_a_new_rule_needs_forward_only() -> None:
    class First(Aggregator):
        def forward(self, shard: UpdateShard) -> Tensor:
            return shard.map(lambda values: values[0])

    updates = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    rule = First()
    assert rule(updates).tolist() == [1, 2]
    shard = UpdateShard.from_updates(updates, torch.tensor([3.0, 1.0]))
    assert rule.mask(shard).tolist() == [True, True]
    assert rule.aggregate_buffers(shard).tolist() == [1.5, 3.0]  # the mean weighted by sample counts
    rule.check(1)
    with pytest.raises(NotImplementedError):
        Aggregator()(updates)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda values: None, r"got a NoneType"),
        (lambda values: 1.0, r"got a float"),
        (lambda values: values, r"got the shape \(2, 3\)"),
        (lambda values: values[0, :2], r"got the shape \(2,\)"),
    ],
)
def test_what_is_no_number_for_each_coordinate_is_refused(made: Any, said: str) -> None:
    """One that forgets to return would train nothing, without a word."""

    class Odd(Aggregator):
        def forward(self, shard: UpdateShard) -> Tensor:
            return made(shard.values)

    message = rf"Odd\.forward must return a number for each coordinate of the shard, \(3,\), {said}; return what shard\.map"
    for updates in (torch.ones(2, 3), UpdateShard.from_updates(torch.ones(2, 3))):
        with pytest.raises(ConfigurationError, match=message):
            Odd()(updates)


@pytest.mark.parametrize("rule", [FedAvg(), AndMask()])
def test_rules_that_are_always_defined_accept_any_number_of_clients(rule: Aggregator) -> None:
    for n in (1, 2, 1000):
        rule.check(n)
