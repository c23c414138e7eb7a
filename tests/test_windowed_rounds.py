"""Rounds of an attack's window: against a loop by hand, and resumed on other numbers of ranks."""

import copy
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from killed import KillAt, KilledError
from ranks import on_ranks
from tiny import TinyClient, tiny_data, tiny_federation, tiny_tensors, tiny_trainer, vector
from torch import Tensor, nn

from fl_lightning import (
    BackdoorLifespan,
    BackdoorMetrics,
    CohortSampler,
    Federation,
    LastCheckpoint,
    LocalTraining,
    RunRecord,
)
from fl_lightning.aggregators import FedAvg
from fl_lightning.attacks import Attack, Attacker, Neurotoxin, ValueTrigger
from fl_lightning.callbacks.digests import weights_sha256
from fl_lightning.checkpoints.forking import fork
from fl_lightning.data import IID, Samples
from fl_lightning.seeding import generator

SEED, CLIENTS, EACH, BATCH, LR, FACTOR = 4, 8, 12, 4, 0.1, 2.0


class Stamped(Attack):
    """The first half of a client's samples get 4 in their last column and class 0, and the update is doubled."""

    target_label = 0

    def poison(self, dataset: Samples, attacker: Attacker) -> Samples:
        inputs, targets = dataset.batch(torch.arange(len(dataset)))
        inputs, targets = inputs.clone(), targets.clone()
        inputs[: EACH // 2, -1], targets[: EACH // 2] = 4.0, 0
        return type(tiny_tensors(1))(inputs, targets)

    def corrupt(self, shard, knowledge) -> None:
        for bucket in shard.buckets:
            bucket[shard.malicious] *= FACTOR

    def stamp(self, test: Samples) -> Samples:
        inputs, targets = test.batch(torch.arange(len(test)))
        inputs = inputs[targets != 0].clone()
        inputs[:, -1] = 4.0
        return type(tiny_tensors(1))(inputs, torch.zeros(len(inputs), dtype=torch.int64))


class Plain(TinyClient):
    """A perceptron, and SGD without more."""

    def __init__(self) -> None:
        super().__init__(norm=False, dropout=0.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=LR)


def by_hand(model: nn.Module, clients: list[tuple[Tensor, Tensor]], cohorts: list[list[tuple[int, bool]]]) -> list[Tensor]:
    """Federated averaging of equal clients in plain torch, (d,) weights after every round; each client by (number, attacks)."""
    found = []
    for t, cohort in enumerate(cohorts):
        before, total = vector(model), torch.zeros_like(vector(model))
        for client, attacks in cohort:
            local = copy.deepcopy(model)
            x, y = (part.clone() for part in clients[client])
            if attacks:
                x[: EACH // 2, -1], y[: EACH // 2] = 4.0, 0
            for batch in torch.randperm(EACH, generator=generator(SEED, "batches", t, client)).split(BATCH):
                loss = nn.functional.cross_entropy(local.net(x[batch]), y[batch])  # type: ignore[operator, union-attr]
                for p, g in zip(local.parameters(), torch.autograd.grad(loss, list(local.parameters())), strict=True):
                    p.data -= LR * g
            total += (before - vector(local)) * (FACTOR if attacks else 1.0)
        new, start = before - total / len(cohort), 0
        for p in model.parameters():
            p.data = new[start : start + p.numel()].view_as(p).clone()
            start += p.numel()
        found.append(new)
    return found


class Weights(L.Callback):
    """Keeps the weights after every round."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.kept.append(vector(pl_module.client).clone())


@pytest.mark.parametrize("after", ["benign", "absent"])
def test_five_rounds_agree_with_a_loop_written_by_hand(after):
    cohort = CohortSampler(4, 0.25, start_round=1, end_round=4, interval=2, after=after)
    torch.manual_seed(SEED)
    client = Plain()
    start, weights, record = copy.deepcopy(client), Weights(), RunRecord()
    data = tiny_data(IID(num_clients=CLIENTS), n=CLIENTS * EACH, seed=SEED)
    local = LocalTraining(batch_size=BATCH, executor="sequential")
    federation = Federation(client, FedAvg(), [Stamped()], cohort, local, seed=SEED)
    tiny_trainer(5, callbacks=[weights, BackdoorMetrics(), record], fast_dev_run=5).fit(federation, data)
    malicious = cohort.malicious_clients(SEED, CLIENTS).tolist()
    drawn = [cohort.draw(SEED, t, data.sizes).clients.tolist() for t in range(5)]
    assert [len(set(malicious) & set(clients)) for clients in drawn] == [1, 1, 1, 1, 1 if after == "benign" else 0]
    cohorts = [[(c, c in malicious and t in (1, 3)) for c in clients] for t, clients in enumerate(drawn)]
    own = [data.client(c).batch(torch.arange(EACH)) for c in range(CLIENTS)]
    model = copy.deepcopy(start)
    expected = by_hand(model, own, cohorts)
    for found, value in zip(weights.kept, expected, strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=1e-6)
    always = [[(c, c in malicious) for c in clients] for clients in drawn]
    never = [[(c, False) for c in clients] for clients in drawn]
    for other in (always, never):  # the loop tells them apart
        assert (by_hand(copy.deepcopy(start), own, other)[-1] - expected[-1]).abs().max() > 1e-3
    test = tiny_tensors(50, seed=1)
    x = test.inputs[test.targets != 0].clone()
    x[:, -1] = 4.0
    asr = float((model.net(x).argmax(1) == 0).float().mean())  # type: ignore[operator, union-attr]
    assert record.history.entries[-1]["asr"] == pytest.approx(asr)


def test_five_rounds_of_which_two_are_a_prefix_agree_with_the_loop(tmp_path):
    """Forked from a clean run's second round, and attacked in rounds 2 and 3."""
    data = tiny_data(IID(num_clients=CLIENTS), n=CLIENTS * EACH, seed=SEED)
    cohort = CohortSampler(4, 0.25, start_round=2, end_round=4)
    starts = []

    def run(folder: Path, rounds: int, window: CohortSampler, ckpt_path: Any = None) -> Tensor:
        torch.manual_seed(SEED)
        client = Plain()
        starts.append(copy.deepcopy(client))
        local = LocalTraining(batch_size=BATCH, executor="sequential")
        federation = Federation(client, FedAvg(), [Stamped()], window, local, seed=SEED)
        callbacks = [BackdoorMetrics(), LastCheckpoint(), RunRecord({"model": "plain"})]
        settings: Any = {"default_root_dir": folder, "enable_checkpointing": True, "callbacks": callbacks}
        tiny_trainer(rounds, **settings).fit(federation, data, ckpt_path=ckpt_path)
        return vector(federation.client)

    run(tmp_path / "prefix", 2, CohortSampler(4, 0.25, start_round=2))
    record = json.loads((tmp_path / "prefix" / "run.json").read_text())
    (tmp_path / "forked").mkdir()
    about = {"id": "prefix", "round": 2, "exact": True, "rule": None, "config_hash": record["config_hash"]}
    fork(tmp_path / "prefix", tmp_path / "forked", {"model": "plain"}, about)
    found = run(tmp_path / "forked", 5, cohort, "last")
    malicious = cohort.malicious_clients(SEED, CLIENTS).tolist()
    drawn = [cohort.draw(SEED, t, data.sizes).clients.tolist() for t in range(5)]
    own = [data.client(c).batch(torch.arange(EACH)) for c in range(CLIENTS)]
    for attacked, same in (((2, 3), True), ((), False), (range(5), False)):
        cohorts = [[(c, c in malicious and t in attacked) for c in clients] for t, clients in enumerate(drawn)]
        expected = by_hand(copy.deepcopy(starts[0]), own, cohorts)[-1]
        assert ((found - expected).abs().max() <= 1e-6) == same


class Grows(Attack):
    """Remembers in how many rounds it planned, and writes that into the data."""

    def __init__(self) -> None:
        self.rounds = 0

    def plan(self, module, datasets, attackers) -> None:
        self.rounds += 1

    def poison(self, dataset, attacker):
        inputs, targets = dataset.batch(torch.arange(len(dataset)))
        return type(tiny_tensors(1))(inputs + 0.1 * self.rounds, targets)

    def state_dict(self):
        return {"rounds": self.rounds}

    def load_state_dict(self, state) -> None:
        self.rounds = state["rounds"]


def windowed(folder: str, world: int, kill_at: int | None) -> tuple[Any, ...]:
    """Final weights, lifespan and how often the attack planned, of eight rounds with attacks in 1, 3 and 5."""
    attacks: list[Attack] = [
        ValueTrigger(column=5, value=4.0, source_label=1, target_label=0),
        Neurotoxin(fraction=0.3),
        Grows(),
    ]
    cohort = CohortSampler(clients_per_round=5, malicious_fraction=0.3, start_round=1, end_round=6, interval=2, after="absent")
    federation = tiny_federation(attacks=attacks, cohort=cohort)
    record, lifespan = RunRecord({"model": "tiny"}), BackdoorLifespan(kappa=0.1, horizons=[1, 2])
    callbacks: list[L.Callback] = [lifespan, BackdoorMetrics(), record, LastCheckpoint()]
    callbacks += [] if kill_at is None else [KillAt(kill_at)]
    trainer = tiny_trainer(8, devices=world, callbacks=callbacks, default_root_dir=folder, enable_checkpointing=True)
    try:
        trainer.fit(federation, tiny_data(), ckpt_path="last")
    except KilledError:
        return ("killed",)
    assert isinstance(attacks[2], Grows)
    found = lifespan.found(federation, record.history).as_json()
    return weights_sha256(federation.client), found, attacks[2].rounds


def test_a_run_goes_on_within_and_after_the_window_on_other_numbers_of_ranks(tmp_path):
    whole = windowed(str(tmp_path / "whole"), 1, None)
    assert whole[2] == 3
    assert whole[1]["attack_over"] == 6
    folder = str(tmp_path / "parts")
    assert windowed(folder, 1, 2) == ("killed",)
    assert on_ranks(2, windowed, folder, 2, 7)[0] == ("killed",)
    assert windowed(folder, 1, None) == whole
