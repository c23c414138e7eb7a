from typing import Any

import pytest
import torch
from tiny import fit, tiny_data, tiny_federation

from fl_lightning import LocalTraining
from fl_lightning.clients import BRANCHES_ON_A_GPU, Clients
from fl_lightning.errors import ConfigurationError
from fl_lightning.machine.footprint import Footprint, check_fits
from fl_lightning.server import resources, setting_up
from fl_lightning.server.resources import COMPILE_SECONDS, LOAD_SECONDS, SAVED_SECONDS, compiling_pays

CPU = torch.device("cpu")


def test_compiling_pays_when_the_rounds_save_more_than_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    coordinates = COMPILE_SECONDS["cpu"] / SAVED_SECONDS["cpu"] / 100  # what 100 rounds are just worth
    assert not compiling_pays("auto", 0.99 * coordinates, [100, -1], CPU)
    assert compiling_pays("auto", 1.01 * coordinates, [100, -1], CPU)
    assert compiling_pays("auto", 1.0, [None, -1], CPU)  # no end
    assert not compiling_pays("auto", 1e30, [100], torch.device("meta"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "somewhere")
    assert compiling_pays("auto", 1.01 * coordinates * LOAD_SECONDS / COMPILE_SECONDS["cpu"], [100], CPU)


def test_what_is_wanted_is_done() -> None:
    assert compiling_pays("always", 1.0, [1], CPU)
    assert not compiling_pays("never", 1e30, [-1], CPU)


def test_a_round_that_does_not_fit_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "available_bytes", lambda *_: 1000)
    with pytest.raises(
        ConfigurationError, match=r"a round takes at least .* but 0\.0 MiB are free; lower model\.cohort"
    ) as told:
        fit(tiny_federation(), tiny_data(), rounds=1)
    for term in ("N = 7, d = 447, W = 1", "global model", "trained updates", "snapshot", "client's optimizer"):
        assert term in str(told.value)


@pytest.mark.parametrize(
    ("of_sum", "asked", "branches"), [(3.0, 0, 8), (1.0, 0, 1), (0.6, 0, None), (1.01, 8, 8), (0.9, 8, None)]
)
def test_fewer_clients_stand_side_by_side_where_memory_is_short(
    of_sum: float, asked: int, branches: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what is free is left for what is not counted, unless a number is asked for."""

    class OnAGpu(Clients):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.branches = self.local.branches or BRANCHES_ON_A_GPU

    def check(footprint: Footprint, available: int, held: int) -> None:
        sums.append(footprint.total - held)
        check_fits(footprint, available, held)

    monkeypatch.setattr(setting_up, "Clients", OnAGpu)
    monkeypatch.setattr(resources, "check_fits", check)
    sums: list[int] = []
    made = tiny_federation(local=LocalTraining(branches=8))
    fit(made, tiny_data(), rounds=1)
    monkeypatch.setattr(resources, "available_bytes", lambda *_: int(of_sum * sums[0]))
    made = tiny_federation(local=LocalTraining(branches=asked))
    if branches is None:
        with pytest.raises(ConfigurationError, match="a round takes at least"):
            fit(made, tiny_data(), rounds=1)
    else:
        fit(made, tiny_data(), rounds=1)
        assert made.clients.branches == branches


@pytest.mark.parametrize(("free", "kept"), [(2**40, True), (100_000, False), (None, False)], ids=["plenty", "tight", "unknown"])
def test_freed_memory_is_kept_where_there_is_plenty(free: int | None, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(resources, "available_bytes", lambda *_: free)
    monkeypatch.setattr(resources, "give_freed_memory_back", lambda: calls.append("what an earlier run kept goes back"))
    monkeypatch.setattr(resources, "keep_freed_memory", lambda: calls.append("kept"))
    fit(tiny_federation(), tiny_data(), rounds=1)
    assert calls == ["what an earlier run kept goes back", *(["kept"] if kept else [])]


def test_where_the_system_does_not_tell_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "available_bytes", lambda *_: None)
    assert fit(tiny_federation(), tiny_data(), rounds=1).global_step == 1
