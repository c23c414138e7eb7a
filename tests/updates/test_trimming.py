"""Trimmed mean and mask in one pass: as a NumPy oracle has them, the same bits however they are computed."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from fl_lightning.updates import UpdateShard, trimming
from fl_lightning.updates.order_statistics import NETWORK_ROWS, trimmed_mean
from fl_lightning.updates.trimming import COMPILED_ROWS, masked_trimmed_mean, trimmed

SPECIAL = [0.0, -0.0, 2.0**-149, -(2.0**-149), 1.0, -1.0, 1e30, -1e30]


def bits(values: Tensor) -> bytes:
    return values.contiguous().numpy().tobytes()


def drawn(n: int, columns: int, seed: int = 0) -> Tensor:
    """Columns of all kinds: of normal numbers, of a few small integers with many zeros and ties, of extremes."""
    draws = torch.Generator().manual_seed(seed)
    values = torch.randn(n, columns, generator=draws)
    values[:, 1::3] = torch.randint(-1, 2, values[:, 1::3].shape, generator=draws).float()
    values[:, 2::3] = torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), values[:, 2::3].shape, generator=draws)]
    return values


def oracle(values: Tensor, b: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, c) -> trimmed mean and mask, one column at a time, in float64."""
    means, kept = [], []
    for column in values.numpy().astype(np.float64).T:
        ordered = sorted(column)[b : len(column) - b]
        kept.append(abs(sum(int(np.sign(value)) for value in column)) >= least)
        means.append(sum(ordered) / len(ordered) if kept[-1] else 0.0)
    return np.array(means), np.array(kept)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 19, 20, NETWORK_ROWS, NETWORK_ROWS + 1, 130])
def test_equals_the_oracle_for_every_threshold(n: int) -> None:
    values = drawn(n, 60, seed=n)
    shard = UpdateShard.from_updates(values)
    for b in {0, n // 5, (n - 1) // 2}:
        for least in {0, 1, min(2, n), n // 3, n // 2, n - 1, n}:
            mean, kept = trimmed(shard, b, least)
            expected_mean, expected_kept = oracle(values, b, least)
            assert np.array_equal(kept.numpy(), expected_kept), f"{n} rows, {least} votes"
            np.testing.assert_allclose(mean.numpy(), expected_mean, rtol=2e-5, atol=1e24 if n > 1 else 0)
            assert bits(mean) == bits(torch.where(kept, trimmed_mean(values, b), 0.0))
        whole = trimmed(shard, b)
        assert whole.kept.all()
        assert bits(whole.mean) == bits(trimmed_mean(values, b))


def test_small_values_to_the_last_digits() -> None:
    values = torch.randn(20, 1000, generator=torch.Generator().manual_seed(1))
    mean, _ = trimmed(UpdateShard.from_updates(values), 5, 5)
    np.testing.assert_allclose(mean.numpy(), oracle(values, 5, 5)[0], rtol=1e-5, atol=1e-7)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_mask_is_the_count_of_votes_whatever_the_zeros(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 16))
    column = data.draw(st.lists(st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 3.0]), min_size=n, max_size=n))
    least, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, (n - 1) // 2))
    values = torch.tensor(column)[:, None]
    positive, negative = sum(value > 0 for value in column), sum(value < 0 for value in column)
    for scratch in (None, torch.empty(n + 1, 1)):
        _, kept = masked_trimmed_mean(values, b, least, scratch)
        assert kept.tolist() == [abs(positive - negative) >= least]


def test_votes_are_counted_only_where_zeros_leave_them_open(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr(trimming, "_count_votes", lambda values: counted.append(values) or values.sign().sum(0).abs())
    scratch = torch.empty(21, 50)
    values = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    masked_trimmed_mean(values, 5, 5, scratch)
    assert not counted
    values[:, 7] = 0.0  # a dead unit
    assert not masked_trimmed_mean(values, 5, 5, scratch)[1][7]
    assert len(counted) == 1


@pytest.mark.parametrize("n", [20, NETWORK_ROWS + 6])
def test_pieces_and_buckets_do_not_show(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = drawn(n, 3000)
    whole = trimmed(UpdateShard.from_updates(values), 5, 5)
    monkeypatch.setattr(trimming, "working_set_bytes", lambda: 4 * n * 300)
    monkeypatch.setattr(trimming, "CACHE_ELEMENTS", 300 * n)
    shard = UpdateShard.from_updates(values)
    shard.buckets = list(values.split([1024, 0, 1, 1975], dim=1))
    cut = trimmed(shard, 5, 5)
    assert bits(cut.mean) == bits(whole.mean)
    assert torch.equal(cut.kept, whole.kept)


def test_updates_are_left_as_they_are() -> None:
    values = drawn(20, 500)
    before = values.clone()
    trimmed(UpdateShard.from_updates(values), 5, 5)
    assert bits(values) == bits(before)


# ---- compiled --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("n", "b", "least"), [(6, 1, 2), (5, 1, None)])
def test_compiled_gives_the_same_bits_at_any_width(n: int, b: int, least: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trimming, "COMPILED_COLUMNS", 5000)  # of the last bucket three pieces
    values = drawn(n, 20_000)
    values[:, 3::5] = -0.0
    values[:, 4::5] = 0.0
    values[:, 6::11] *= 3e38 / values[:, 6::11].abs().amax(0).clamp(min=1.0)  # sums that float32 does not hold
    shard, compiled = UpdateShard.from_updates(values), UpdateShard.from_updates(values)
    compiled.compiled = True
    compiled.buckets = list(values.split([1, 1024, 8, 0, 7, 18_960], dim=1))
    assert trimming.compiled(n, b, least, torch.device("cpu")) is not None
    count = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    expected, found = trimmed(shard, b, least), trimmed(compiled, b, least)
    assert bits(found.mean) == bits(expected.mean)
    assert torch.equal(found.kept, expected.kept)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == count, "a width was compiled anew"


@pytest.mark.slow
def test_compiled_nothing_but_the_result_is_written_to_memory() -> None:
    trimming.compiled.cache_clear()
    with torch._inductor.config.patch(force_disable_caches=True):
        _, written = run_and_get_code(trimming.compiled, 20, 5, 13, torch.device("cpu"))
    assert written, "nothing was compiled"
    assert not any("= empty_strided" in code for code in written)


def test_many_rows_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trimming, "compiled", lambda *_: pytest.fail("compiled"))
    shard = UpdateShard.from_updates(drawn(COMPILED_ROWS + 1, 9))
    shard.compiled = True
    assert trimmed(shard, 2).mean.shape == (9,)


def test_without_a_compiler_it_runs_as_it_is_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> object:
        def call(*_: object) -> None:
            raise RuntimeError("no C++ compiler\nsecond line")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    trimming.compiled.cache_clear()
    values = drawn(9, 100)
    shard = UpdateShard.from_updates(values)
    shard.compiled = True
    with caplog.at_level(logging.WARNING, logger="fl_lightning"):
        for _ in range(2):
            assert bits(trimmed(shard, 2).mean) == bits(trimmed_mean(values, 2))
    trimming.compiled.cache_clear()
    assert [record.message for record in caplog.records] == [
        "the rule's inner loop cannot be compiled, and runs as it is, several times slower: no C++ compiler"
    ]
