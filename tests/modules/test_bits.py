import hashlib
import tracemalloc

import pytest
import torch

from fl_lightning.modules.bits import as_bytes, named_sha256, same_bits


@pytest.mark.parametrize(
    "other",
    [
        torch.tensor([1.0, -0.0, torch.nan]),
        torch.tensor([1.0, 0.0, 2.0]),
        torch.tensor([[1.0, 0.0, torch.nan]]),
        torch.tensor([1.0, 0.0, torch.nan], dtype=torch.float64),
    ],
)
def test_tensors_that_are_not_the_same(other):
    one = torch.tensor([1.0, 0.0, torch.nan])
    assert same_bits(one, one.clone())
    assert not same_bits(one, other)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.complex64, torch.complex128])
def test_tensors_of_any_type_and_layout(dtype):
    one = torch.arange(6).reshape(2, 3).to(dtype)
    assert same_bits(one.T, one.T.contiguous())
    assert same_bits(one.conj(), one.conj().clone())
    assert same_bits(torch.tensor(1, dtype=dtype), one[0, 1])
    assert as_bytes(one.T) == as_bytes(one.T.contiguous())


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_a_single_value_out_of_a_table_has_bits_too(dtype):
    one = torch.arange(6).to(dtype).view(3, 2)[1:2, 1]  # of stride 2, which PyTorch takes for contiguous
    assert as_bytes(one) == as_bytes(torch.tensor([3], dtype=dtype))
    assert same_bits(one, torch.tensor([3], dtype=dtype))


def test_a_digest_reads_a_matrix_where_it_lies() -> None:
    matrix = torch.arange(2_000_000, dtype=torch.float32).view(1000, 2000)
    named = [("w", matrix), ("b", matrix[:, 0]), ("t", matrix.T)]
    tracemalloc.start()
    found = named_sha256(named[:2])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000, "a copy of the matrix has 8,000,000 bytes"
    expected = hashlib.sha256()
    for name, tensor in named[:2]:
        expected.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + as_bytes(tensor))
    assert found == expected.hexdigest()
    assert named_sha256(named[2:]) == named_sha256([("t", matrix.T.contiguous())])
