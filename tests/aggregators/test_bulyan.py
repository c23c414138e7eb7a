import logging

import pytest
import torch
from distance_oracles import around_median
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_oracles import aggregated

from fl_lightning.aggregators.bulyan import Bulyan, mean_around_median
from fl_lightning.aggregators.median import Median
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import UpdateShard
from fl_lightning.updates.order_statistics import NETWORK_ROWS


@pytest.mark.parametrize(
    ("column", "count", "expected"),
    [
        ([0.0, 5.0, 6.0, 8.0, 9.0], 3, 19 / 3),  # 5, 6, 8
        ([9.0, 0.0, 8.0, 6.0, 5.0], 1, 6.0),
        ([0.0, 5.0, 6.0, 8.0, 9.0], 4, 7.0),  # 9 is nearer to 6 than 0
        ([0.0, 5.0, 6.0, 8.0, 9.0], 5, 5.6),
        ([1.0, 2.0, 3.0, 90.0], 2, 2.5),  # the median is 2.5
        ([1.0, 2.0, 3.0, 90.0], 3, 2.0),
        ([4.0, 6.0, 8.0], 2, 5.0),  # 4 and 8 are as far: the smaller is kept
        ([-90.0, -80.0, -70.0, 1.0, 2.0, 3.0, 4.0], 3, 2.0),
        ([1.0, 2.0, 3.0, 4.0, 70.0, 80.0, 90.0], 3, 3.0),
        ([-3.0, 1e-36, 2e-36, 1.0, 9.0, 9.0], 2, 0.5),  # 1e-36 would not show beside 1
    ],
)
def test_mean_around_median_by_hand(column: list[float], count: int, expected: float) -> None:
    assert mean_around_median(torch.tensor(column)[:, None], count).tolist() == pytest.approx([expected], rel=1e-6)


SIZES = st.floats(2.0**-10, 2.0**10, width=32)  # of which float64 differences are exact
ENTRIES = st.integers(-5, 5).map(float) | SIZES | SIZES.map(lambda size: -size)


@settings(deadline=None, max_examples=150)
@given(column=st.lists(ENTRIES, min_size=1, max_size=12), data=st.data())
def test_mean_around_median_is_its_oracle(column: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(column)))
    value, bound = around_median(column, count)
    values = torch.tensor(column)[:, None]
    found = mean_around_median(values, count)
    assert abs(found.item() - value) <= bound
    order = torch.tensor(data.draw(st.permutations(range(len(column)))))
    assert torch.equal(mean_around_median(values[order], count), found)


def test_by_hand() -> None:
    # f = 1, theta = 5, beta = 3. Over 4, 3, 2, 1, 1 neighbours 2, 4, 1, 7 (which ties with 12) and 0 (again) are selected.
    shard = UpdateShard.from_updates(torch.tensor([[7.0], [0.0], [99.0], [1.0], [2.0], [4.0], [12.0]]))
    assert Bulyan(num_malicious=1).selected(shard).tolist() == [0, 1, 3, 4, 5]
    assert Bulyan(num_malicious=1)(shard).tolist() == [1.0]  # 1, 2, and of 0 and 4 the smaller


def test_selection_takes_up_new_scores_after_each_choice() -> None:
    # Two groups: who is left in one loses neighbours as others of it are chosen.
    column = [0.0, 1.0, 2.0, 3.0, 4.0, 10.0, 10.1, 10.2, 10.3, 50.0, 60.0]
    shard = UpdateShard.from_updates(torch.tensor(column)[:, None])
    chosen = Bulyan(num_malicious=2).selected(shard).tolist()
    assert len(chosen) == 7
    distances = {(a, b): (column[a] - column[b]) ** 2 for a in range(11) for b in range(11)}
    left, expected = list(range(11)), []
    for _ in range(7):
        near = max(1, len(left) - 4)
        best = min(left, key=lambda a: (sum(sorted(distances[a, b] for b in left if b != a)[:near]), a))
        left.remove(best)
        expected.append(best)
    assert chosen == sorted(expected)


@settings(deadline=None, max_examples=100)
@given(points=st.lists(st.integers(-4, 4), min_size=1, max_size=14), f=st.integers(0, 4))
def test_selection_is_krum_again_and_again(points: list[int], f: int) -> None:
    shard = UpdateShard.from_updates(torch.tensor(points, dtype=torch.float32)[:, None])
    left, expected = list(range(len(points))), []
    for _ in range(max(1, len(points) - 2 * f)):
        near = max(1, len(left) - f - 2)
        distances = {a: sorted((points[a] - points[b]) ** 2 for b in left if b != a) for a in left}
        best = min(left, key=lambda a: (sum(distances[a][:near]), a))
        left.remove(best)
        expected.append(best)
    assert Bulyan(num_malicious=f).selected(shard).tolist() == sorted(expected)


@pytest.mark.parametrize("n", [NETWORK_ROWS, NETWORK_ROWS + 1, 130])
def test_mean_around_median_of_many_is_its_oracle(n: int) -> None:
    values = torch.randn(n, 40, generator=torch.Generator().manual_seed(n))
    for column, found in zip(values.T.tolist(), mean_around_median(values, n // 2).tolist(), strict=True):
        value, bound = around_median(column, n // 2)
        assert abs(found - value) <= bound


def test_twenty_clients_of_which_four_are_malicious() -> None:
    updates = torch.randn(20, 100, generator=torch.Generator().manual_seed(0))
    updates[[2, 5, 11, 19]] = 40.0
    rule = Bulyan(num_malicious=4)
    rule.check(20)
    chosen = rule.selected(UpdateShard.from_updates(updates)).tolist()
    assert len(chosen) == 12
    # Colluders have score 0 as soon as three neighbours count, which is so for the last choice; the median takes care of it.
    assert {2, 5, 11, 19} & set(chosen) == {2}
    kept = updates[chosen]
    middle = kept.median(0).values / 2 - (-kept).median(0).values / 2
    expected = kept.gather(0, (kept - middle).abs().argsort(dim=0)[:4]).mean(0)  # theta = 12, beta = 4
    assert torch.allclose(rule(updates), expected, atol=1e-6)
    assert (rule(updates).abs() < 2).all()


def test_nearer_than_a_benign_entry_that_is_dropped() -> None:
    gen = torch.Generator().manual_seed(0)
    for seed in range(20):
        benign = torch.randn(5, 30, generator=gen)
        attack = torch.randn(2, 30, generator=gen) * 10.0 ** (seed % 5)
        values = torch.cat([benign, attack])  # theta = 7, f = 2, beta = 3
        middle = values.median(0).values
        result = mean_around_median(values, 3)
        assert ((result - middle).abs() <= (benign - middle).abs().amax(0) + 1e-6).all()


def test_without_malicious_clients_it_is_the_mean() -> None:
    updates = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(Bulyan(num_malicious=0)(updates), updates.mean(0), atol=1e-6)


def test_check() -> None:
    for f in range(6):
        Bulyan(num_malicious=f).check(4 * f + 3)
    with pytest.raises(
        ConfigurationError, match=r"f = 4 malicious of N = 18 clients .* N >= 4f \+ 3 = 19 is needed; .* to 3 or less"
    ):
        Bulyan(num_malicious=4).check(18)
    told = Bulyan()
    told.expect(1)
    told.check(7)
    with pytest.raises(ConfigurationError, match=r"4f \+ 3 = 7 is needed; .* to 0 or less"):
        told.check(6)
    with pytest.raises(ConfigurationError, match=r"Bulyan\.num_malicious must be at least 0, got -2"):
        Bulyan(num_malicious=-2)
    with pytest.raises(ConfigurationError, match=r"give Bulyan\(num_malicious"):
        Bulyan()(torch.ones(3, 2))


@pytest.mark.parametrize(
    ("column", "f", "expected"),
    [
        ([7.0], 1, 7.0),
        ([7.0, 9.0], 1, 7.0),  # theta = 1: Krum
        ([7.0, 1.0, 2.0], 1, 1.0),
        ([1.0, 50.0, 2.0, 3.0], 1, 1.5),  # theta = 2, beta = 2
        ([1.0, 2.0, 3.0, 4.0, 50.0], 1, 2.0),  # theta = 3, beta = 1: the median of 1, 2, 3
    ],
)
def test_exclusions_are_warned_about(column: list[float], f: int, expected: float, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert aggregated(Bulyan(num_malicious=f), [column]) == [expected]
    (record,) = caplog.records
    assert record.getMessage() == f"Bulyan: {len(column)} clients are left with f = 1, fewer than 4f + 3 = 7; it may not hold"


def test_buffers_take_the_median() -> None:
    updates = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Bulyan(num_malicious=1).aggregate_buffers(UpdateShard.from_updates(updates)), Median()(updates))
