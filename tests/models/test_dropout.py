import math

import pytest
import torch

from fl_lightning.errors import ConfigurationError
from fl_lightning.models.dropout import MOST, ByteDropout


@pytest.mark.parametrize("p", [0.25, 0.5, 1 / 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_are_zero_or_scaled(p, dtype):
    torch.manual_seed(0)
    found = ByteDropout(p)(torch.ones(16, 4097, dtype=dtype))
    scaled = torch.ones((), dtype=dtype).mul_(1 / (1 - p))
    assert bool(((found == 0) | (found == scaled)).all())
    n, dropped = found.numel(), int((found == 0).sum())
    assert abs(dropped - n * p) < 5 * math.sqrt(n * p * (1 - p))  # five standard deviations


def test_a_mask_is_that_of_the_generators_bytes():
    inputs = torch.randn(3, 5)
    torch.manual_seed(7)
    found = ByteDropout(0.25)(inputs)
    torch.manual_seed(7)
    drawn = [int(torch.randint(-MOST, MOST, ())) % 2**64 for _ in range(2)]
    drawn = [(number >> (8 * i)) % 256 for number in drawn for i in range(8)]  # little-endian
    expected = torch.tensor(
        [x / 0.75 if byte >= 64 else 0.0 for x, byte in zip(inputs.flatten().tolist(), drawn, strict=False)]
    )
    torch.testing.assert_close(found.flatten(), expected, rtol=2e-7, atol=0)  # two roundings


def test_gradients_pass_where_numbers_do():
    torch.manual_seed(0)
    inputs = torch.randn(6, 7, requires_grad=True)
    found = ByteDropout(0.5)(inputs)
    found.sum().backward()
    assert inputs.grad is not None
    torch.testing.assert_close(inputs.grad * inputs, found)
    assert 0 < int((inputs.grad == 0).sum()) < inputs.numel()


def test_nothing_is_drawn_in_evaluation_or_without_dropout():
    inputs = torch.randn(4)
    before = torch.get_rng_state()
    assert ByteDropout(0.5).eval()(inputs) is inputs
    assert ByteDropout(0.0)(inputs) is inputs
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("p", [-0.25, 1.0, 0.3, float("nan")])
def test_what_a_byte_cannot_decide_is_refused(p):
    with pytest.raises(ConfigurationError, match=r"ByteDropout\.p must be a multiple of 1/256 in \[0, 1\)"):
        ByteDropout(p)
