"""Means whose sum float32 does not hold."""

import pytest
import torch
from torch import Tensor

from fl_lightning.updates import UpdateShard, trimming
from fl_lightning.updates.order_statistics import NETWORK_ROWS, median, trimmed_mean
from fl_lightning.updates.overflow import MOST, all_finite, mend
from fl_lightning.updates.trimming import trimmed


def loud(n: int, columns: int) -> Tensor:
    """Every third column ordinary, the others of numbers near the largest, of one sign and of both."""
    draws = torch.Generator().manual_seed(n)
    values = torch.randn(n, columns, generator=draws)
    values[:, 1::3] = MOST * (1 - torch.rand(values[:, 1::3].shape, generator=draws) / 4)
    values[:, 2::3] = MOST * (2 * torch.rand(values[:, 2::3].shape, generator=draws) - 1)
    return values


def oracle(values: Tensor, b: int) -> Tensor:
    return values.double().sort(dim=0).values[b : len(values) - b].mean(0)


def close(found: Tensor, values: Tensor, expected: Tensor) -> bool:
    """Whether float32 sums of N numbers may differ by so much."""
    slack = (len(values) + 3) * 2.0**-23 * values.double().abs().amax(0)
    return bool(((found.double() - expected).abs() <= slack).all())


@pytest.mark.parametrize(
    ("values", "finite"),
    [([], True), ([1.0, -2.0], True), ([MOST, MOST], True), ([torch.inf, -torch.inf], False), ([torch.nan, 1.0], False)],
)
def test_all_finite(values: list[float], finite: bool) -> None:
    assert all_finite(torch.tensor(values)) is finite


@pytest.mark.parametrize("n", [2, 3, 20, NETWORK_ROWS, NETWORK_ROWS + 1, 130])
def test_order_statistics_have_a_mean_whatever_their_size(n: int) -> None:
    values = loud(n, 60)
    before = values.clone()
    for b in {0, n // 5, (n - 1) // 2}:
        found = trimmed_mean(values, b)
        assert close(found, values, oracle(values, b))
        assert torch.equal(found[::3], trimmed_mean(values[:, ::3].contiguous(), b)), "ordinary columns have other bits"
        for least in (None, 0, n // 2):
            masked = trimmed(UpdateShard.from_updates(values), b, least)
            assert torch.equal(masked.mean, torch.where(masked.kept, found, 0.0))
    assert median(torch.full((n, 3), 3e38)).tolist() == torch.full((3,), 3e38).tolist()
    assert torch.equal(values, before)


def test_pieces_and_buckets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    values = loud(20, 3000)
    whole = trimmed(UpdateShard.from_updates(values), 5, 5)
    monkeypatch.setattr(trimming, "working_set_bytes", lambda: 4 * 20 * 300)
    shard = UpdateShard.from_updates(values)
    shard.buckets = list(values.split([1024, 0, 1, 1975], dim=1))
    assert torch.equal(trimmed(shard, 5, 5).mean, whole.mean)
    assert torch.equal(shard.mean(shard.shares), UpdateShard.from_updates(values).mean(shard.shares))


def test_combinations_are_taken_in_float64_where_they_must_be() -> None:
    values = loud(20, 60)
    shard = UpdateShard.from_updates(values, torch.arange(1.0, 21.0))
    assert close(shard.mean(shard.shares), values, shard.shares.double() @ values.double())
    differences = torch.tensor([4.0, 4.0, -7.0])
    pairs = UpdateShard.from_updates(torch.full((3, 2), 3e38))
    assert close(pairs.combine(differences), torch.full((3, 2), 3e38), torch.full((2,), 3e38, dtype=torch.float64))
    tenths = UpdateShard.from_updates(torch.full((10, 2), MOST))  # ten times .1 is more than 1 in float32
    assert tenths.mean().tolist() == [MOST, MOST]


def test_what_is_out_of_range_in_earnest_stays_so() -> None:
    shard = UpdateShard.from_updates(torch.tensor([[3e38, 1.0], [3e38, 2.0]]))
    assert shard.combine(torch.tensor([1.0, 1.0])).tolist() == [torch.inf, 3.0]


def test_nothing_is_done_twice_where_all_is_well() -> None:
    means = torch.tensor([1.0, MOST, MOST])
    assert mend(means, [], lambda _: pytest.fail("computed again")) is means
    asked = []
    lost = torch.tensor([1.0, torch.inf, 2.0])
    found = mend(lost, [(slice(0, 3), torch.full((2, 3), 3e38))], lambda values: asked.append(values.shape) or values.mean(0))
    assert asked == [(2, 1)]
    assert found.tolist() == torch.tensor([1.0, 3e38, 2.0]).tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu(compiled: bool) -> None:
    values = loud(20, 100_003)
    shard = UpdateShard.from_updates(values.cuda())
    shard.compiled = compiled
    expected = UpdateShard.from_updates(values)
    assert torch.equal(trimmed(shard, 5, 13).mean.cpu(), trimmed(expected, 5, 13).mean)
    assert torch.equal(shard.mean(shard.shares).cpu(), expected.mean(expected.shares))
