import pytest
import torch
from torch import Tensor

from fl_lightning.updates import copying
from fl_lightning.updates.copying import copy_each, lie_alike


def tensors(device: str = "cpu") -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)
    made = [torch.randn(3, 4, 2, 2, generator=draws) for _ in range(4)]
    made[1] = made[1].to(memory_format=torch.channels_last)
    made += [torch.randn(3, 2, 1, 1, generator=draws).to(memory_format=torch.channels_last)]
    made += [torch.arange(5), torch.tensor(7), torch.randn(2, generator=draws).double()]
    return [tensor.to(device) for tensor in made]


def places(device: str = "cpu") -> list[Tensor]:
    """Of other strides in one case, of another type in another."""
    made = [torch.empty_like(tensor) for tensor in tensors(device)]
    made[2] = made[2].to(memory_format=torch.channels_last)
    made[4] = torch.empty(3, 2, 1, 1, device=device)
    made[-1] = made[-1].float()
    return made


def test_whatever_is_given_is_copied() -> None:
    found = places()
    copy_each(found, tensors())
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(found, tensors(), strict=True))
    assert found[2].is_contiguous(memory_format=torch.channels_last)
    copy_each([], [])


def test_only_axes_with_more_than_one_number_tell_how_tensors_lie() -> None:
    weight = torch.randn(4, 3, 1, 1)
    turned = weight.to(memory_format=torch.channels_last)
    assert weight.stride() != turned.stride()
    assert lie_alike(weight, turned)
    assert torch.equal(turned.as_strided(weight.shape, weight.stride()), weight)
    assert not lie_alike(torch.zeros(4, 3, 2, 2), torch.zeros(4, 3, 2, 2).to(memory_format=torch.channels_last))
    assert lie_alike(torch.tensor(1.0), torch.tensor(2.0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_few_calls_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = torch._foreach_copy_, []
    monkeypatch.setattr(copying.torch, "_foreach_copy_", lambda into, given: calls.append(len(into)) or real(into, given))
    found = places("cuda")
    copy_each(found, tensors("cuda"))
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(found, tensors("cuda"), strict=True))
    assert sorted(calls) == [2, 2, 4]  # whole numbers; what is converted or turned; floats
