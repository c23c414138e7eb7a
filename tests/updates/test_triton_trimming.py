"""The kernel's text, carried out by stand-ins on a CPU: what Triton makes of it is for a machine with a GPU to test."""

from subprocess import CalledProcessError
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fl_lightning.updates import UpdateShard, trimming
from fl_lightning.updates.trimming import trimmed
from fl_lightning.updates.triton_trimming import source, trim_kernel

CASES = [(1, 0, 1), (2, 0, None), (3, 1, 2), (5, 2, 0), (20, 5, 13), (20, 5, None), (33, 8, 7), (64, 16, 64)]


class Memory:
    """A tensor, and where in it each column's pointer is."""

    def __init__(self, tensor: Tensor, at: Any = 0) -> None:
        self.flat, self.at = tensor, at

    def __add__(self, offset: Any) -> "Memory":
        return Memory(self.flat, self.at + offset)


def load(place: Memory, inside: Tensor, other: float) -> Tensor:
    return torch.where(inside, place.flat[torch.where(inside, place.at, 0)], other)


def store(place: Memory, values: Tensor, inside: Tensor) -> None:
    place.flat[place.at[inside]] = values[inside].to(place.flat.dtype)


def carried_out(n: int, b: int, least: int | None, bucket: Tensor, block: int = 256) -> tuple[Tensor, Tensor]:
    """What the kernel writes, its programs one after the other."""
    program = [0]
    language = SimpleNamespace(
        constexpr=int,
        int32=torch.int32,
        int64=torch.int64,
        float32=torch.float32,
        uint8=torch.uint8,
        arange=torch.arange,
        load=load,
        store=store,
        minimum=torch.minimum,
        maximum=torch.maximum,
        where=torch.where,
        program_id=lambda axis: torch.tensor(program[axis]),
        full=lambda shape, value, dtype: torch.full(shape, value, dtype=dtype),
        div_rn=torch.div,
    )
    text = source(n, b, least is not None).replace("import triton\nimport triton.language as tl\n", "")
    defined: dict[str, Any] = {"tl": language, "triton": SimpleNamespace(jit=lambda **_: lambda function: function)}
    exec(text, defined)
    width = bucket.shape[1]
    mean, kept = torch.full((width,), torch.nan), torch.ones(width, dtype=torch.uint8)
    whole = bucket.as_strided((bucket.untyped_storage().nbytes() // 4,), (1,), 0)
    for program[0] in range(-(-width // block)):
        values = Memory(whole, bucket.storage_offset())
        defined["trim"](values, bucket.stride(0), Memory(mean), Memory(kept), width, least or 0, BLOCK=block)
    return mean, kept.bool()


def updates(n: int, width: int) -> Tensor:
    values = torch.randn(n, width, generator=torch.Generator().manual_seed(n))
    values[:, ::7] = 0.0
    values[: n // 2 + 1, ::5] = -0.0
    return values


@pytest.mark.parametrize(("n", "b", "least"), CASES)
def test_the_kernels_text_gives_the_same_bits(n: int, b: int, least: int | None) -> None:
    values = updates(n, 1000)[:, 3:703]
    mean, kept = carried_out(n, b, least, values)
    expected = trimmed(UpdateShard.from_updates(values.contiguous()), b, least)
    assert torch.equal(mean.view(torch.int32), expected.mean.view(torch.int32))
    assert torch.equal(kept, expected.kept)


class TritonError(Exception):
    """As Triton's own, which have no other base."""


@pytest.mark.parametrize("error", [ImportError("no triton"), TritonError("no triton"), CalledProcessError(1, "no triton")])
def test_a_gpu_on_which_nothing_is_compiled_goes_on_without(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def without(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(trimming, "trim_kernel", without)
    trimming.compiled.cache_clear()
    assert trimming.compiled(20, 5, 13, torch.device("cuda", 0)) is None
    trimming.compiled.cache_clear()
    assert "the rule's inner loop cannot be compiled, and runs as it is, several times slower: " in caplog.text
    assert "no triton" in caplog.text


def test_triton_is_asked_for_when_a_kernel_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    fake = ModuleType("triton")
    fake.jit = lambda **_: lambda function: asked.append(function.__name__)  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "triton", fake)
    monkeypatch.setitem(__import__("sys").modules, "triton.language", SimpleNamespace(constexpr=int))
    trim_kernel(3, 1, 2)
    assert asked == ["trim"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("n", "b", "least"), CASES)
def test_on_a_gpu(n: int, b: int, least: int | None) -> None:
    values = updates(n, 100_003)
    shard = UpdateShard.from_updates(values.cuda())
    shard.compiled = True
    shard.buckets = list(shard.buckets[0].split([1, 1024, 8, 0, 7, 98_963], dim=1))
    assert trimming.compiled(n, b, least, shard.weights.device) is not None
    found, expected = trimmed(shard, b, least), trimmed(UpdateShard.from_updates(values), b, least)
    assert torch.equal(found.mean.cpu().view(torch.int32), expected.mean.view(torch.int32))
    assert torch.equal(found.kept.cpu(), expected.kept)
