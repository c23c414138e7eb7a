"""A look at what cannot be put back tells whether it has changed."""

import io
from functools import lru_cache
from queue import Queue
from typing import Any

import numpy as np
import pytest
import torch

from fl_lightning.fingerprints import described, fingerprint


@lru_cache
def cached(n: int) -> int:
    return n


class Odd:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


@pytest.mark.parametrize(
    ("value", "change"),
    [
        (np.zeros(5_000_000), lambda v: v.__iadd__(1)),
        (np.array([[1], [1, 2]], dtype=object), lambda v: v[0].append(2)),
        (torch.zeros(9), lambda v: v.data.add_(1)),
        (torch.eye(2).to_sparse(), lambda v: v.mul_(2)),
        ([[], []], lambda v: v[1].append(1)),
        ({"a": torch.zeros(2)}, lambda v: v["a"].add_(1)),
        (io.StringIO("abc"), lambda v: v.read(1)),
        (Queue(), lambda v: v.put(1)),
        (cached, lambda v: v(3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_change_shows(value: Any, change: Any) -> None:
    before = fingerprint(value)
    assert fingerprint(value) == before
    change(value)
    assert fingerprint(value) != before


def test_a_look_never_fails() -> None:
    assert fingerprint(Odd()) is None


def test_it_is_called_by_its_kind() -> None:
    assert described("client.q", Queue()) == "client.q (Queue)"
    assert described("client.seen", [1, 2]) == "client.seen (list of 2 entries)"
    assert "lru_cache" in described("net.cached", cached)
