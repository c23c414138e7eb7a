"""The number of ranks is not part of the experiment, and a resume is invisible."""

import copy
import math
from typing import Any

import lightning as L
import pytest
import torch
import torchmetrics
from killed import KillAt, KilledError
from ranks import on_ranks
from tiny import (
    RULES,
    Relabel,
    Scale,
    Shrink,
    TinyClient,
    fit,
    tiny_data,
    tiny_federation,
    tiny_trainer,
)
from torch import nn

from fl_lightning import CohortSampler, ConfigurationError, Federation, LocalTraining
from fl_lightning.aggregators import FedAvg
from fl_lightning.attacks import EdgeCase
from fl_lightning.callbacks import AggregationDiagnostics, BackdoorMetrics, LastCheckpoint, RunRecord
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.data import IID, Digits, RotatedDigits
from fl_lightning.models import CNN

# ---- the number of ranks is not part of the experiment -----------------------------------------------------------------


class MetricClient(TinyClient):
    """Logs a torchmetrics object, which must not ask other ranks while they train other clients."""

    def __init__(self) -> None:
        super().__init__(lr=0.09)
        self.mean = torchmetrics.MeanMetric()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.mean(loss.detach())
        self.log("mean", self.mean)
        return loss


class TeacherClient(TinyClient):
    """Moves a frozen copy of itself along, and a buffer that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__(lr=0.08)
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)
        self.register_buffer("steps", torch.zeros(()), persistent=False)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx) * (1 + self.steps / 10)
        with torch.no_grad():
            self.steps += 1
            for old, new in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                old.lerp_(new, 0.1)
        return loss + nn.functional.mse_loss(self(batch[0]), self.teacher(batch[0]))


class DoubleClient(TinyClient):
    def forward(self, inputs):
        return super().forward(inputs.double())


class DrawsGlobally(Relabel):
    """Uses torch's global generator, as an attack from elsewhere may."""

    def poison(self, dataset, attacker):
        return dataset.relabel(torch.randint(0, 3, (len(dataset),)))


def run_everything(world: int, every: int = 1) -> dict[str, Any]:
    """Weights and metrics of short runs with every rule and attack here, or of every so many, keyed by name."""
    results: dict[str, tuple[Any, ...]] = {}
    for name, rule in list(RULES.items())[::every]:
        federation = tiny_federation(aggregator=rule(), bucket_bytes=1)
        trainer = fit(federation, devices=world, callbacks=[BackdoorMetrics(), AggregationDiagnostics()])
        metrics = {key: value.item() for key, value in trainer.callback_metrics.items()}
        results[name] = weights_sha256(federation.client), metrics
    variants: dict[str, dict[str, Any]] = {
        "attacks": {"attacks": [Relabel(), Shrink(), Scale(-2.0)]},
        "pool": {"cohort": CohortSampler(clients_per_round=8, malicious_fraction=0.3, participation="random_pool")},
        "nan": {"attacks": [Scale(math.nan)]},
        "keep": {"buffers": "keep"},
        "mean": {"buffers": "mean"},
        "adam": {"server_optimizer": lambda p: torch.optim.Adam(p, lr=0.01)},
        "few": {"cohort": CohortSampler(clients_per_round=2, malicious_fraction=0.0), "aggregator": FedAvg()},
        "bf16": {"local": LocalTraining(precision="bf16", batch_size=8)},
        "metric": {"client": MetricClient()},
        "teacher": {"client": TeacherClient()},
        "double": {"client": DoubleClient(norm=False).double(), "cohort": CohortSampler(clients_per_round=3)},
        "global draws": {"attacks": [DrawsGlobally()]},
    }
    for name, kwargs in list(variants.items())[::every]:
        federation = tiny_federation(**kwargs)
        trainer = fit(federation, devices=world)
        metrics = {key: value.item() for key, value in trainer.callback_metrics.items()}
        results[name] = weights_sha256(federation.client), metrics, federation.excluded_updates
    digits = tiny_federation(
        client=CNN(in_channels=1, image_size=8, channels=(4,), hidden=8),
        attacks=[EdgeCase(pool=RotatedDigits(digit=1), target_label=7, num_edge=5, num_clean=20)],
    )
    trainer = fit(digits, Digits(IID(num_clients=20)), rounds=2, devices=world, callbacks=[BackdoorMetrics()])
    results["digits"] = weights_sha256(digits.client), {k: v.item() for k, v in trainer.callback_metrics.items()}
    return results


@pytest.fixture(scope="module")
def on_one_rank():
    return on_ranks(1, run_everything, 1)[0]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "every"), [(2, 1), (3, 1), (4, 4)])
def test_same_bits_on_any_number_of_ranks(world, every, on_one_rank):
    results = on_ranks(world, run_everything, world, every)
    for rank in range(world):
        assert results[rank] == {name: on_one_rank[name] for name in results[rank]}, f"rank {rank} of {world}"


def test_the_runs_compared_across_ranks_differ_from_each_other(on_one_rank):
    digests = [digest for digest, *_ in on_one_rank.values()]
    assert len(set(digests)) == len(digests)
    assert on_one_rank["nan"][2] > 0


def different_on_every_rank(world: int) -> str:
    """Starts from other weights on every rank: rank 0's must win, frozen ones included."""
    federation = tiny_federation(client=TeacherClient(), buffers="keep")
    torch.manual_seed(torch.distributed.get_rank())
    with torch.no_grad():
        for tensor in (*federation.client.parameters(), *federation.client.buffers()):
            tensor.copy_(torch.rand(tensor.shape) + 1)
    fit(federation, rounds=1, devices=world)
    return weights_sha256(federation.client)


def test_every_rank_starts_from_the_first_ones_weights():
    assert len({*on_ranks(1, different_on_every_rank, 1), *on_ranks(3, different_on_every_rank, 3)}) == 1


@pytest.mark.parametrize("seeded", [True, False])
def test_initial_weights_that_chance_drew_are_told(seeded, caplog):
    torch.manual_seed(1) if seeded else torch.seed()
    federation = Federation(TinyClient(), FedAvg(), cohort=CohortSampler(clients_per_round=7), seed=5)
    fit(federation, rounds=1)
    assert ("the next run starts from others, whatever Federation(seed=5) says" in caplog.text) is not seeded


# ---- resume is invisible -----------------------------------------------------------------------------------------------


class Began(L.Callback):
    """Remembers the first round of a call."""

    def on_train_start(self, trainer, pl_module) -> None:
        self.round = trainer.global_step


def resumable(folder: str, rounds: int, world: int, kill_at: int | None, every: int = 1) -> tuple[Any, ...]:
    """Digest of the final weights, history, and the first round that this call ran."""
    federation = tiny_federation(server_optimizer=lambda p: torch.optim.SGD(p, lr=0.7, momentum=0.5))
    record = RunRecord({"model": "tiny"})
    began = Began()
    callbacks: list[L.Callback] = [BackdoorMetrics(), record, LastCheckpoint(every_n_rounds=every), began]
    if kill_at is not None:
        callbacks.append(KillAt(kill_at))
    trainer = tiny_trainer(
        rounds,
        devices=world,
        callbacks=callbacks,
        default_root_dir=folder,
        enable_checkpointing=True,
        check_val_every_n_epoch=2,
    )
    try:
        trainer.fit(federation, tiny_data(), ckpt_path="last")
    except KilledError:
        return "killed", [], began.round
    return weights_sha256(federation.client), record.history.entries, began.round


@pytest.mark.parametrize(("every", "worlds", "resumed_at"), [(1, (1, 2), 3), (2, (3, 1), 2)])
def test_resume_is_invisible_also_on_another_number_of_ranks(tmp_path, every, worlds, resumed_at):
    whole = on_ranks(1, resumable, str(tmp_path / "whole"), 6, 1, None)[0]
    folder = str(tmp_path / "parts")
    assert on_ranks(worlds[0], resumable, folder, 6, worlds[0], 3, every)[0][0] == "killed"
    assert (tmp_path / "parts" / "last.ckpt").exists()
    *resumed, began = on_ranks(worlds[1], resumable, folder, 6, worlds[1], None, every)[0]
    assert began == resumed_at
    assert resumed == list(whole[:2])
    assert [entry["round"] for entry in whole[1]] == [2, 4, 6]


def test_a_run_can_be_made_longer(tmp_path):
    whole = resumable(str(tmp_path / "whole"), 4, 1, None)
    resumable(str(tmp_path / "parts"), 2, 1, None)
    *longer, began = resumable(str(tmp_path / "parts"), 4, 1, None)
    assert began == 2
    assert longer == list(whole[:2])


def test_a_checkpoint_of_another_seed_is_refused(tmp_path):
    trainer = fit(tiny_federation(), rounds=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ConfigurationError, match="seed 0, this run has seed 1"):
        tiny_trainer(2).fit(tiny_federation(seed=1), tiny_data(), ckpt_path=tmp_path / "one.ckpt")
