import numpy as np
import pytest
import torch

from fl_lightning.updates.division import divide_


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("by", [1, 3, 10, 49])
def test_quotients_are_rounded_once(by: int, dtype: torch.dtype) -> None:
    tensor = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=dtype)
    expected = tensor.numpy() / np.asarray(by, dtype=tensor.numpy().dtype)
    assert divide_(tensor, by) is tensor
    assert np.array_equal(tensor.numpy(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_bits() -> None:
    tensor = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(divide_(tensor.cuda(), 10).cpu(), divide_(tensor, 10))
