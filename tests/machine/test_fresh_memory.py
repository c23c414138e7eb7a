from typing import Any

import pytest
import torch
import torch.utils.deterministic

from fl_lightning.machine.fresh_memory import unfilled

settings: Any = torch.utils.deterministic


@pytest.fixture
def filled():
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all(), "PyTorch does not fill new tensors any more: fresh_memory can go"
    yield
    torch.use_deterministic_algorithms(False)


def test_new_memory_is_not_filled_inside(filled: None) -> None:
    assert all(torch.empty(n).isnan().all() for n in range(1000, 1020))
    with unfilled():
        assert not all(torch.empty(n).isnan().all() for n in range(2000, 2020))


def test_what_was_set_is_set_again_also_after_a_failure(filled: None) -> None:
    @unfilled()
    def fails() -> None:
        assert not settings.fill_uninitialized_memory
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert settings.fill_uninitialized_memory
