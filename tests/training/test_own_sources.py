"""What clients and data keep or draw by themselves shows neither in the order of clients nor in the number of ranks."""

import os
import random
import types
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from ranks import on_ranks
from tiny import CLASSES, TinyClient, fit, tiny_federation, tiny_tensors
from torch.utils.data import Dataset

from fl_lightning import CohortSampler, FederatedDataModule
from fl_lightning.callbacks import LastCheckpoint
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.data import IID
from fl_lightning.modules.kept_python import KeptPython

OUTSIDE = random.Random(0)


class Counting(TinyClient):
    """Keeps everything that a client should not."""

    history: list[float] = []  # noqa: RUF012  the mistake that is meant

    def __init__(self) -> None:
        super().__init__()
        self.n = 0
        self.mean = torch.zeros(())
        self.rng = np.random.default_rng(0)
        self.last: Any = None

    def training_step(self, batch, batch_idx):
        self.n += 1
        loss = super().training_step(batch, batch_idx)
        self.mean.mul_(0.9).add_(loss.detach())
        self.history.append(float(loss))
        self.last = loss
        return loss * (1 + 0.01 * self.n + 0.1 * self.mean + 0.01 * len(self.history) + 0.1 * self.rng.random())


class Noisy(Dataset):
    """Draws by itself."""

    def __init__(self) -> None:
        self.samples = tiny_tensors(120)
        self.rng = np.random.default_rng(0)
        self.torch_rng = torch.Generator().manual_seed(0)
        self.late: Any = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):
        inputs, target = self.samples.inputs[index], int(self.samples.targets[index])
        if self.late is None:
            self.late = random.Random(3)
        noise = self.rng.random() + float(torch.rand((), generator=self.torch_rng)) + self.late.random() + OUTSIDE.random()
        return inputs + 0.1 * noise, target


class CountsReads(Noisy):
    """Gives every sample another way each time."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return self.samples.inputs[index] + 0.01 * self.reads, int(self.samples.targets[index])


def data_of(kind: Any) -> FederatedDataModule:
    return FederatedDataModule.from_datasets(
        kind(), tiny_tensors(50, seed=1), partition=IID(num_clients=6), num_classes=CLASSES
    )


def run(world: int, kind: Any, rounds: int = 3, folder: str | None = None, *, resume: bool = False) -> str:
    torch.manual_seed(0)
    Counting.history.clear()
    model = tiny_federation(client=Counting(), attacks=[], cohort=CohortSampler(clients_per_round=5, malicious_fraction=0.0))
    more: dict[str, Any] = {} if folder is None else {"enable_checkpointing": True, "default_root_dir": folder}
    callbacks = [] if folder is None else [LastCheckpoint()]
    ckpt_path = "last" if resume else None
    fit(model, data_of(kind), rounds=rounds, devices=world, callbacks=callbacks, ckpt_path=ckpt_path, **more)
    return weights_sha256(model.client)


def runs(world: int, folder: str) -> list[str]:
    found = [run(world, Noisy), run(world, CountsReads)]
    run(world, Noisy, 1, folder)
    return [*found, run(world, Noisy, 3, folder, resume=True)]


@pytest.mark.slow
def test_same_bits_on_any_number_of_ranks_and_after_a_resume(tmp_path):
    one = on_ranks(1, runs, 1, str(tmp_path / "one"))[0]
    assert one[0] == one[2]
    for world in (2, 3):
        assert on_ranks(world, runs, world, str(tmp_path / str(world))) == [one] * world


def test_what_is_put_back_is_named_once(caplog):
    run(1, Noisy)
    (line,) = [record.message for record in caplog.records if "put back after every client" in record.message]
    assert all(name in line for name in ("n,", "mean", "last", "history"))


def test_data_that_go_on_by_themselves_are_named(caplog):
    run(1, CountsReads)
    assert "reads, and what the next one comes to depends on it; it is put back after every client" in caplog.text


def test_what_cannot_be_seeded_is_warned_of(caplog):
    class Clock(Noisy):
        def __getitem__(self, index):
            draws = np.random.default_rng()  # of the system
            return self.samples.inputs[index] + draws.random(), int(self.samples.targets[index])

    run(1, Clock, rounds=1)
    assert "a client that is trained twice from the same weights and draws ends with other weights" in caplog.text
    caplog.clear()
    run(1, Noisy, rounds=1)
    assert "trained twice" not in caplog.text


COUNT, LINES = 0, []


class Slotted:
    __slots__ = ("n",)
    total = 0


class Global(TinyClient):
    """Trains by what it keeps in names of its module."""

    def training_step(self, batch, batch_idx):
        global COUNT
        COUNT += 1
        Slotted.total += 1
        LINES.append(COUNT)
        return super().training_step(batch, batch_idx) * (1 + 0.1 * COUNT + 0.1 * Slotted.total)


class Writing(TinyClient):
    """Only writes there."""

    def training_step(self, batch, batch_idx):
        LINES.append(batch_idx)
        return super().training_step(batch, batch_idx)


@lru_cache
def drawn_once():
    return float(torch.rand(()))


class Caching(TinyClient):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 + drawn_once())


class Large(TinyClient):
    """Counts in an array that is too large to be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.weights_of_samples = np.zeros(2**21 + 1)

    def training_step(self, batch, batch_idx):
        self.weights_of_samples += 1
        return super().training_step(batch, batch_idx) * (1 + self.weights_of_samples[0])


def train(client: Any, rounds: int = 1) -> str:
    torch.manual_seed(0)
    model = tiny_federation(client=client, attacks=[], cohort=CohortSampler(clients_per_round=5, malicious_fraction=0.0))
    fit(model, data_of(Noisy), rounds=rounds)
    return weights_sha256(model.client)


def test_global_names_that_matter_are_put_back_and_named(caplog):
    global COUNT
    COUNT = Slotted.total = 0
    LINES.clear()
    train(Global())
    (line,) = [record.message for record in caplog.records if "what the next one comes to depends on it" in record.message]
    assert all(f"{name}," in line for name in (f"{__name__}.COUNT", f"{__name__}.LINES", "Slotted.total"))
    assert COUNT == Slotted.total == len(LINES) == 0


def test_global_names_that_do_not_matter_are_left_alone(caplog):
    LINES.clear()
    train(Writing())
    assert len(LINES) > 5
    assert "LINES" not in caplog.text


@pytest.mark.parametrize(
    ("client", "named"),
    [
        (Caching, "test_own_sources.drawn_once (which keeps results by functools.lru_cache) changes as it trains, and cannot"),
        (Large, "client.weights_of_samples (ndarray of 17 MB) changes as it trains, and cannot be put back"),
    ],
)
def test_what_cannot_be_put_back_is_named(client, named, caplog):
    drawn_once.cache_clear()
    train(client())
    assert named in caplog.text


def test_generators_of_one_name_in_two_modules_are_both_found():
    other = types.ModuleType("other")
    vars(other)["OUTSIDE"] = np.random.default_rng(1)
    found = KeptPython({"a": lambda: OUTSIDE, "b": type(lambda: 0)((lambda: OUTSIDE).__code__, vars(other))}, values=False)
    assert {id(of) for of in found.generators.values()} == {id(OUTSIDE), id(vars(other)["OUTSIDE"])}


class Counted(TinyClient):
    """Counts in the environment of the process."""

    def training_step(self, batch, batch_idx):
        os.environ["COUNTED_STEPS"] = str(int(os.environ.get("COUNTED_STEPS", "0")) + 1)
        return super().training_step(batch, batch_idx) * (1 + 0.1 * int(os.environ["COUNTED_STEPS"]))


def test_the_environment_is_put_back_where_it_matters(caplog, monkeypatch):
    monkeypatch.delenv("COUNTED_STEPS", raising=False)
    train(Counted())
    assert "COUNTED_STEPS" in caplog.text
    assert "it is put back after every client" in caplog.text
    assert "COUNTED_STEPS" not in os.environ
