import pytest
import torch
from made_shards import bits, cut, drawn
from torch import Tensor

from fl_lightning.updates import means_of_sets
from fl_lightning.updates.means_of_sets import MANY_ROWS, Sets


def matrix_of(sets: Tensor) -> Tensor:
    return sets / sets.sum(1, keepdim=True).double()


def some_sets(m: int, n: int, share: float) -> Tensor:
    sets = torch.rand(m, n, generator=torch.Generator().manual_seed(m)) < share
    sets[:, 0] = True
    return sets


def bound(sets: Tensor, updates: Tensor) -> Tensor:
    """Of errors: roundings of each term's way, and one more of everything for float64 and the end."""
    common = 2 * sets.sum(0) > len(sets)
    weights = (sets | common).double()
    terms = (sets ^ common).sum(1, keepdim=True) + 4
    return 2.0**-24 * terms * (weights @ updates.double().abs()) / sets.sum(1, keepdim=True) + 2.0**-149


@pytest.mark.parametrize("share", [0.01, 0.4, 0.8, 1.0])
def test_means_are_their_oracle_wherever_buckets_are_cut(share: float) -> None:
    n = MANY_ROWS
    sets, updates = some_sets(30, n, share), drawn(n, 3000) * 10 ** drawn(n, 3000, seed=1)
    assert Sets.of(matrix_of(sets)) is not None
    expected = torch.stack([updates[row].double().mean(0) for row in sets])
    found = [cut(updates, *widths).mix(matrix_of(sets)).values for widths in ((3000,), (1024, 1976), (2048, 952))]
    assert ((found[0] - expected).abs() <= bound(sets, updates)).all()
    assert len({bits(values) for values in found}) == 1


def test_others_are_no_sets_or_too_few() -> None:
    sets = some_sets(5, MANY_ROWS, 0.5)
    assert Sets.of(matrix_of(sets)) is not None
    assert Sets.of(matrix_of(sets[:, :-1])) is None
    assert Sets.of(2 * matrix_of(sets)) is None
    assert Sets.of(torch.rand(5, MANY_ROWS, dtype=torch.float64)) is None
    nobody = matrix_of(sets)
    nobody[2] = 0
    assert Sets.of(nobody) is None


def test_whoever_most_have_is_common() -> None:
    sets = torch.zeros(3, MANY_ROWS, dtype=torch.bool)
    sets[:, 0], sets[:2, 1], sets[0, 2] = True, True, True
    found = Sets.of(matrix_of(sets))
    assert found is not None
    assert found.common.nonzero().flatten().tolist() == [0, 1]
    assert found.members.tolist() == [2, 1]  # the first has 2 more, the last does not have 1
    assert found.signs.tolist() == [1, -1]
    assert found.starts.tolist() == [0, 1, 1]
    assert found.sizes.flatten().tolist() == [3, 2, 1]


def test_what_float32_does_not_hold_is_added_up_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = drawn(MANY_ROWS, 2000)
    updates[1:9, 1500] = 3e38
    sets = some_sets(20, MANY_ROWS, 0.9)
    found = cut(updates, 2000).mix(matrix_of(sets)).values
    monkeypatch.setattr(means_of_sets, "MANY_ROWS", MANY_ROWS + 1)
    expected = cut(updates, 2000).mix(matrix_of(sets)).values
    assert found.isfinite().all()
    assert bits(found[:, 1024:]) == bits(expected[:, 1024:])  # the whole block


def test_an_outlier_that_few_have_does_not_show_in_the_others() -> None:
    updates, sets = drawn(MANY_ROWS, 500), some_sets(20, MANY_ROWS, 0.9)
    sets[:, 7], updates[7] = False, 1e30
    sets[3, 7] = True
    found = cut(updates, 500).mix(matrix_of(sets)).values
    others = torch.arange(20) != 3
    expected = torch.stack([updates[row].double().mean(0) for row in sets])
    assert ((found - expected).abs()[others] <= bound(sets[others], updates.where(updates < 1e29, 0))).all()
    torch.testing.assert_close(found[3].double(), expected[3], rtol=1e-6, atol=0)
