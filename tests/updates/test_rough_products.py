import pytest
import torch
from made_shards import cut, drawn

from fl_lightning.updates import rough_products
from fl_lightning.updates.rough_products import exact_products, exact_squares, rough_gram
from fl_lightning.updates.shard import UpdateShard

# An exact sum of float32 products in float64 is known to about 1e-13 of the lengths; bounds here are 1e-5 and more of them.


@pytest.mark.parametrize("size", [1e-30, 1e-18, 1.0, 1e15])
@pytest.mark.parametrize("d", [1, 127, 1024, 5000, 300_000])
@pytest.mark.parametrize("fine", [False, True])
def test_errors_are_bounded(size: float, d: int, fine: bool) -> None:
    updates = drawn(5, d) * size * torch.tensor([1.0, 1e-3, 7.0, 0.0, 1e4])[:, None]
    shard = UpdateShard.from_updates(updates)
    gram, rough = shard.gram(), rough_gram(shard, fine=fine)
    lengths = gram.diagonal().sqrt()[:, None] * gram.diagonal().sqrt()
    off = (rough.products - gram).abs() - rough.rounding * lengths
    assert (off.fill_diagonal_(0) <= rough.errors).all()
    assert ((rough.squares - gram.diagonal()).abs() <= rough.squares_errors + 2 * rough.rounding * gram.diagonal()).all()
    if (
        size == 1.0
    ):  # and not by much more than there may be: of 2,048 or 128 coordinates, and up to 64 times one after the other
        assert (rough.errors <= 1.02 * ((128 + 64 if fine else 2048) + 20) * 2.0**-24 * lengths + 1e-12).all()


@pytest.mark.parametrize("fine", [False, True])
def test_what_float32_does_not_hold_is_bounded_by_lengths(fine: bool) -> None:
    updates = torch.tensor([[3e38, 3e38], [-3e38, 3e38], [1.0, 2.0]])
    rough = rough_gram(UpdateShard.from_updates(updates), fine=fine)
    assert rough.products.isfinite().all()
    assert rough.errors.isfinite().all()
    assert float(rough.squares[0]) == pytest.approx(1.8e77, rel=1e-6)
    assert not rough.squares_errors.any()
    assert rough.errors[0, 1] >= 1.8e77


@pytest.mark.parametrize("widths", [(9000,), (1024, 7976), (2048, 1024, 1024, 4096, 808)])
def test_wherever_buckets_are_cut_errors_are_bounded(widths: tuple[int, ...]) -> None:
    updates = drawn(6, 9000)
    shard = cut(updates, *widths)
    for fine in (False, True):
        rough = rough_gram(shard, fine=fine)
        assert ((rough.products - shard.gram()).abs().fill_diagonal_(0) <= rough.errors).all()


def test_products_are_float32_whatever_a_user_has_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = torch.ones(400, 1024)
    updates[1::2] += 2.0**-12  # which is nothing in bfloat16 and in TF32, where a CPU has instructions for them
    asked, real = torch.get_float32_matmul_precision(), torch.addmm
    products, seen = torch.backends.mkldnn.matmul, []  # pyrefly: ignore[missing-attribute]
    monkeypatch.setattr(torch, "addmm", lambda *args, **named: seen.append(products.fp32_precision) or real(*args, **named))
    try:
        for precision in ("medium", "high"):
            torch.set_float32_matmul_precision(precision)
            before = products.fp32_precision
            rough = rough_gram(UpdateShard.from_updates(updates), fine=True)
            assert float(rough.products[0, 1]) == 1024 * (1 + 2.0**-12)
            assert before != "ieee"
            assert products.fp32_precision == before
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(asked)
    assert set(seen) == {"ieee"}


@pytest.mark.parametrize("fine", [False, True])
def test_many_updates_have_products_of_all_pairs(fine: bool) -> None:
    n = 2 * rough_products.ROWS + 3
    shard = UpdateShard.from_updates(drawn(n, 1500))
    rough = rough_gram(shard, fine=fine)
    assert torch.equal(rough.products, rough.products.T)
    assert ((rough.products - shard.gram()).abs().fill_diagonal_(0) <= rough.errors).all()


@pytest.mark.parametrize("sparse", [0.0, 1.0])
def test_exact_products_of_some(sparse: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rough_products, "SPARSE", sparse)
    shard = UpdateShard.from_updates(drawn(7, 3000))
    gram, rough = shard.gram(), rough_gram(shard, fine=True)
    before = rough.products.clone()
    pairs = torch.zeros(7, 7, dtype=torch.bool)
    pairs[1, [2, 5]] = pairs[4, [0, 4, 6]] = True
    products, squares = exact_products(shard, pairs)
    torch.testing.assert_close(products, gram[pairs], rtol=0, atol=1e-13 * 3000)
    torch.testing.assert_close(squares, gram.diagonal(), rtol=1e-13, atol=0)
    torch.testing.assert_close(exact_squares(shard), squares, rtol=0, atol=0)
    rough.correct(pairs, products, squares)
    either = pairs | pairs.T
    torch.testing.assert_close(rough.products[either], gram[either], rtol=0, atol=1e-13 * 3000)
    assert torch.equal(rough.products[~either], before[~either])
    assert torch.equal(rough.errors == 0, either)
    assert not rough.squares_errors.any()
