import pytest
import torch
from made_shards import cut, drawn

from fl_lightning.updates import rough_products
from fl_lightning.updates.rough_products import exact_products, exact_squares, rough_gram
from fl_lightning.updates.shard import UpdateShard

# An exact sum of float32 products in float64 is known to about 1e-13 of the lengths; bounds here are 1e-5 and more of them.


@pytest.mark.parametrize("size", [1e-30, 1e-18, 1.0, 1e15])
@pytest.mark.parametrize("d", [1, 127, 1024, 5000, 300_000])
@pytest.mark.parametrize("height", [0, 2])
def test_errors_are_bounded(size: float, d: int, height: int) -> None:
    updates = drawn(5, d) * size * torch.tensor([1.0, 1e-3, 7.0, 0.0, 1e4])[:, None]
    shard = UpdateShard.from_updates(updates)
    gram, rough = shard.gram(), rough_gram(shard, height)
    lengths = gram.diagonal().sqrt()[:, None] * gram.diagonal().sqrt()
    off = (rough.products - gram).abs() - rough.rounding * lengths
    assert (off.fill_diagonal_(0) <= rough.errors).all()
    assert ((rough.squares - gram.diagonal()).abs() <= rough.squares_errors + 2 * rough.rounding * gram.diagonal()).all()
    if size == 1.0:  # and not by much more than there may be: 1,024 roundings for each of 4 blocks in a row
        assert (rough.errors <= 1.02 * (1024 * 2**height + 20) * 2.0**-24 * lengths + 1e-12).all()


def test_what_float32_does_not_hold_is_bounded_by_lengths() -> None:
    updates = torch.tensor([[3e38, 3e38], [-3e38, 3e38], [1.0, 2.0]])
    rough = rough_gram(UpdateShard.from_updates(updates))
    assert rough.products.isfinite().all()
    assert rough.errors.isfinite().all()
    assert float(rough.squares[0]) == pytest.approx(1.8e77, rel=1e-6)
    assert not rough.squares_errors.any()
    assert rough.errors[0, 1] >= 1.8e77


@pytest.mark.parametrize("widths", [(9000,), (1024, 7976), (2048, 1024, 1024, 4096, 808)])
def test_wherever_buckets_are_cut_errors_are_bounded(widths: tuple[int, ...]) -> None:
    updates = drawn(6, 9000)
    shard = cut(updates, *widths)
    for height in (0, 1, 2):
        rough = rough_gram(shard, height)
        assert ((rough.products - shard.gram()).abs().fill_diagonal_(0) <= rough.errors).all()


@pytest.mark.parametrize("sparse", [0.0, 1.0])
def test_exact_products_of_some(sparse: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rough_products, "SPARSE", sparse)
    shard = UpdateShard.from_updates(drawn(7, 3000))
    gram, rough = shard.gram(), rough_gram(shard)
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
