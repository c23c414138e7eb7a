"""The round: against a hand-written loop, on several ranks, across a resume, and with hostile input."""

import copy
import logging
import math
import re
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torchmetrics
from ranks import on_ranks
from tiny import (
    CLIENTS,
    Relabel,
    Scale,
    Shrink,
    TinyClient,
    fit,
    tiny_data,
    tiny_federation,
    tiny_tensors,
    tiny_trainer,
)
from torch import nn

from fl_lightning import CohortSampler, ConfigurationError, FederatedDataModule, Federation, LocalTraining
from fl_lightning.aggregators import AndMask, FedAvg, Invariant, Median, TrimmedMean
from fl_lightning.attacks import Attacker, EdgeCase
from fl_lightning.callbacks import AggregationDiagnostics, BackdoorMetrics, LastCheckpoint, RunRecord
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.data import IID, Digits, RotatedDigits, TensorSamples
from fl_lightning.models import CNN
from fl_lightning.seeding import derive_seed, generator

RULES = {
    "fedavg": FedAvg,
    "median": Median,
    "trimmed": TrimmedMean,
    "and_mask": AndMask,
    "invariant": lambda: Invariant(tau=0.2, alpha=0.25),
}


def vector(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


# ---- the same weights as the plain loop --------------------------------------------------------------------------------


def plain_rounds(client: nn.Module, data: FederatedDataModule, attack, sampler: CohortSampler, rounds: int) -> nn.Module:
    """Federated learning under attack as one would write it down without Lightning, for one rank."""
    model = copy.deepcopy(client)
    for t in range(rounds):
        cohort = sampler.draw(0, t, data.sizes)
        start = {name: value.clone() for name, value in model.state_dict().items()}
        updates, buffers = [], []
        names = [name for name, _ in model.named_parameters()]
        floats = [name for name, buffer in model.named_buffers() if buffer.is_floating_point()]
        for number, malicious in zip(cohort.clients.tolist(), cohort.malicious.tolist(), strict=True):
            local = copy.deepcopy(model).train()
            samples: Any = data.client(number)
            if malicious:
                samples = attack.poison(samples, Attacker(number, 0, data.train))
            torch.manual_seed(derive_seed(0, "client", t, number))
            order = generator(0, "batches", t, number)
            optimizer = torch.optim.SGD(local.parameters(), lr=0.1, momentum=0.9)
            for indices in torch.randperm(len(samples), generator=order).split(16):
                optimizer.zero_grad()
                nn.functional.cross_entropy(local(samples.inputs[indices]), samples.targets[indices]).backward()
                optimizer.step()
            end = local.state_dict()
            updates.append(np.concatenate([(start[n] - end[n]).numpy().ravel() for n in names]))
            buffers.append(np.concatenate([(start[n] - end[n]).numpy().ravel() for n in floats]))
        # Invariant(tau=.2, alpha=.25) for 20 clients: 13 votes to 7 are needed, 5 are trimmed from each end.
        columns = np.stack(updates)
        votes = np.abs(np.sign(columns).sum(0))
        step = np.where(votes >= 5, np.sort(columns, axis=0)[5:-5].mean(0), 0)
        buffer_step = np.sort(np.stack(buffers), axis=0)[5:-5].mean(0)
        with torch.no_grad():
            for names_, delta in ((names, step), (floats, buffer_step)):
                at = 0
                for name in names_:
                    value = dict(model.named_parameters()) | dict(model.named_buffers())
                    size = value[name].numel()
                    value[name].copy_(start[name] - torch.from_numpy(delta[at : at + size]).view_as(start[name]))
                    at += size
    return model


class PlainClient(TinyClient):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def test_equals_the_plain_loop():
    data = tiny_data(IID(num_clients=40), n=807)
    data.setup("fit")
    sampler = CohortSampler(clients_per_round=20, malicious_fraction=0.2)
    federation = tiny_federation(client=PlainClient(), cohort=sampler, local=LocalTraining(batch_size=16))
    expected = plain_rounds(federation.client, data, federation.attacks[0], sampler, 3)
    before = vector(federation.client)
    fit(federation, data)
    torch.testing.assert_close(vector(federation.client), vector(expected), rtol=0, atol=1e-6)
    for (name, one), (_, other) in zip(federation.client.named_buffers(), expected.named_buffers(), strict=True):
        if one.is_floating_point():
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6, msg=name)
    assert (vector(federation.client) - before).norm() > 0.1


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


def run_everything(world: int) -> dict[str, Any]:
    """Weights and metrics of short runs with every rule and attack here, keyed by name."""
    results: dict[str, tuple[Any, ...]] = {}
    for name, rule in RULES.items():
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
    for name, kwargs in variants.items():
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
@pytest.mark.parametrize("world", [2, 3, 4])
def test_same_bits_on_any_number_of_ranks(world, on_one_rank):
    results = on_ranks(world, run_everything, world)
    for rank in range(world):
        assert results[rank] == on_one_rank, f"rank {rank} of {world}"


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


class KilledError(Exception):
    pass


class KillAt(L.Callback):
    """Ends a run in the middle of a round, as a signal would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_aggregate(self, federation, shard, aggregate) -> None:
        if federation.global_step >= self.step:
            raise KilledError


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


# ---- what clients leave behind -----------------------------------------------------------------------------------------


def test_counters_and_other_state_stay_the_servers():
    federation = tiny_federation()
    fit(federation)
    counter = next(b for n, b in federation.client.named_buffers() if n.endswith("num_batches_tracked"))
    assert int(counter) == 0


@pytest.mark.parametrize("policy", ["trimmed", "mean", "keep"])
def test_buffer_policies(policy):
    federation = tiny_federation(buffers=policy)
    fit(federation, rounds=1)
    mean = federation.client.get_buffer("net.1.running_mean")
    if policy == "keep":
        assert not mean.any()
    else:
        assert mean.any()
    assert (federation.client.get_buffer("net.1.running_var") >= 0).all()


def test_a_mask_does_not_freeze_buffers():
    federation = tiny_federation(aggregator=Invariant(tau=1.0, inclusive=True))  # moves what all clients agree on
    before = vector(federation.client)
    fit(federation, rounds=1)
    assert (vector(federation.client) == before).float().mean() > 0.3
    assert (federation.client.get_buffer("net.1.running_mean") != 0).all()


def test_server_learning_rate_scales_the_first_step():
    before = vector(tiny_federation().client)
    full, half = tiny_federation(), tiny_federation(server_optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    fit(full, rounds=1), fit(half, rounds=1)
    torch.testing.assert_close((vector(half.client) - before) * 2, vector(full.client) - before, rtol=1e-4, atol=1e-6)


def test_clients_logs_are_reported_as_averages():
    trainer = fit(tiny_federation(), rounds=1)
    assert 0 < float(trainer.callback_metrics["client/loss"]) < 5


def test_constrain_acts_on_malicious_clients_alone():
    honest = tiny_federation(attacks=[], cohort=CohortSampler(clients_per_round=7, malicious_fraction=0.0))
    idle = tiny_federation(attacks=[Shrink()], cohort=CohortSampler(clients_per_round=7, malicious_fraction=0.0))
    active = tiny_federation(attacks=[Shrink()], cohort=CohortSampler(clients_per_round=7, malicious_fraction=0.3))
    for federation in (honest, idle, active):
        fit(federation, rounds=1)
    assert torch.equal(vector(honest.client), vector(idle.client))
    assert not torch.equal(vector(honest.client), vector(active.client))


# ---- hostile input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf])
def test_updates_that_are_not_finite_are_excluded_and_counted(factor, caplog):
    attacked = tiny_federation(attacks=[Scale(factor)], aggregator=FedAvg())
    with caplog.at_level(logging.WARNING):
        trainer = fit(attacked, rounds=2)
    assert vector(attacked.client).isfinite().all()
    assert attacked.excluded_updates >= 4  # .3 of 7: two or three in each round
    assert attacked.client_updates == 14
    assert float(trainer.callback_metrics["round/excluded_updates"]) >= 2
    assert "excluded" in caplog.text


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("factor", [1e30, 1e-42, 0.0])
def test_extreme_but_finite_updates_leave_finite_weights(rule, factor):
    federation = tiny_federation(attacks=[Scale(factor)], aggregator=RULES[rule](), client=TinyClient(norm=False))
    fit(federation, rounds=1)
    assert vector(federation.client).isfinite().all()
    assert federation.excluded_updates == 0


class Poisoned(TinyClient):
    """Every client's training blows up."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * math.nan


@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9), lambda p: torch.optim.Adam(p)])
def test_without_a_finite_update_the_round_changes_nothing_and_says_so(optimizer, caplog):
    federation = tiny_federation(client=Poisoned(), server_optimizer=optimizer)
    before = weights_sha256(federation.client)
    with caplog.at_level(logging.WARNING):
        trainer = fit(federation, rounds=2, callbacks=[AggregationDiagnostics()])
    assert weights_sha256(federation.client) == before
    assert trainer.global_step == 2
    assert federation.excluded_updates == 14
    assert "the model stays as it is" in caplog.text


def test_an_aggregate_that_overflows_is_not_applied(caplog):
    class Overflow(FedAvg):
        def forward(self, shard):
            return super().forward(shard) * math.inf

    federation = tiny_federation(aggregator=Overflow())
    before = vector(federation.client)
    with caplog.at_level(logging.WARNING):
        fit(federation, rounds=1)
    assert torch.equal(vector(federation.client), before)
    assert "aggregate is not finite" in caplog.text


class Once(FedAvg):
    """An aggregate of one size everywhere in round `at`, and the rule's own in all others."""

    def __init__(self, at: int, size: float) -> None:
        super().__init__()
        self.at, self.size = at, size

    def forward(self, shard):
        aggregate = super().forward(shard)
        return torch.full_like(aggregate, self.size) if shard.round_number == self.at else aggregate


class Loud(Scale):
    """3e38 at every coordinate."""

    def __init__(self) -> None:
        super().__init__(1.0)

    def corrupt(self, shard, knowledge) -> None:
        shard.rewrite(shard.malicious, lambda rows: torch.full_like(rows, 3e38))


class Rounds(L.Callback):
    """The weights and buffers after each round."""

    def __init__(self) -> None:
        self.digests: list[str] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.digests.append(weights_sha256(pl_module.client))


@pytest.mark.parametrize(
    ("server", "size"),
    [(lambda p: torch.optim.SGD(p, lr=1.2, momentum=0.5), 3e38), (lambda p: torch.optim.Adam(p, lr=0.01), 1e25)],
    ids=["sgd", "adam"],
)
def test_a_step_out_of_range_is_taken_back_and_the_run_goes_on(server, size, caplog):
    rounds = Rounds()
    federation = tiny_federation(aggregator=Once(1, size), server_optimizer=server)
    with caplog.at_level(logging.WARNING):
        trainer = fit(federation, rounds=3, callbacks=[rounds])
    assert rounds.digests[0] == rounds.digests[1] != rounds.digests[2]
    assert "round 1 is refused" in caplog.text
    assert (federation.refused_rounds, federation.excluded_updates, trainer.global_step) == (1, 0, 3)
    assert vector(federation.client).isfinite().all()
    assert float(trainer.callback_metrics["round/refused"]) == 0


def test_one_loud_client_does_not_end_a_mean(caplog):
    federation = tiny_federation(attacks=[Loud()], aggregator=FedAvg(), server_optimizer=lambda p: torch.optim.SGD(p, lr=10.0))
    before = weights_sha256(federation.client)
    with caplog.at_level(logging.WARNING):
        fit(federation, rounds=2)
    assert federation.refused_rounds == 2
    assert federation.excluded_updates == 0
    assert weights_sha256(federation.client) == before


def test_attackers_who_are_left_alone_do_not_lead_to_infinity():
    federation = tiny_federation(attacks=[Loud()], aggregator=FedAvg(), client=TinyClient(norm=False))
    fit(federation, rounds=4)  # from the second on nobody benign has finite updates, and the mean is 3e38
    assert vector(federation.client).isfinite().all()
    assert federation.refused_rounds >= 1


def test_an_error_in_a_client_names_client_and_round():
    class Breaks(TinyClient):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck") as caught:
        fit(tiny_federation(client=Breaks()))
    batch, client = caught.value.__notes__
    assert batch.startswith("on batch 1 of ")
    assert re.fullmatch(r"while client \d+, a \w+, was trained in round 0 on \d+ samples", client)


class NoParameters(TinyClient):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class TwoOptimizers(TinyClient):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.1)]


class TwoClasses(TinyClient):
    def forward(self, inputs):
        return self.net(inputs)[:, :2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (tiny_federation(client=NoParameters()), tiny_data()), "no trainable parameter"),
        (lambda: (tiny_federation(client=TwoOptimizers()), tiny_data()), "exactly one optimizer"),
        (lambda: (tiny_federation(client=TwoClasses()), tiny_data()), r"shape \(2, 2\) .* 3 classes"),
        (lambda: (tiny_federation(cohort=CohortSampler(clients_per_round=10)), tiny_data()), "clients_per_round = 10"),
        (
            lambda: (tiny_federation(aggregator=TrimmedMean(alpha=0.45)), tiny_data()),
            r"b = ceil\(0.45 \* 7\) = 4 from each tail of 7 clients, which leaves -1",
        ),
        (lambda: (tiny_federation(), L.LightningDataModule()), "needs a FederatedDataModule"),
        (lambda: (tiny_federation(), tiny_data(IID(num_clients=300))), "300 clients"),
    ],
)
def test_mistakes_are_found_before_training(make, message):
    federation, data = make()
    before = vector(federation.client)
    with pytest.raises(ConfigurationError, match=message):
        tiny_trainer().fit(federation, data)
    assert torch.equal(vector(federation.client), before)


def test_trainer_precision_would_reach_the_rules_and_is_refused():
    with pytest.raises(ConfigurationError, match=r"model\.local\.precision"):
        tiny_trainer(precision="bf16-mixed").fit(tiny_federation(), tiny_data())


def averaging_strategy() -> str:
    trainer = tiny_trainer(devices=2, strategy="ddp")
    try:
        trainer.fit(tiny_federation(), tiny_data())
    except ConfigurationError as error:
        return str(error)
    return "accepted"


def test_a_strategy_that_averages_gradients_is_refused_on_several_ranks():
    assert all('strategy="federated"' in message for message in on_ranks(2, averaging_strategy))


# ---- evaluation --------------------------------------------------------------------------------------------------------


def test_binary_and_own_predictions():
    class OneLogit(TinyClient):
        def forward(self, inputs):
            logits = self.net(inputs)
            return logits[:, 1] - logits[:, 0]

        def training_step(self, batch, batch_idx):
            return nn.functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1].float())

    inputs = tiny_tensors(200).inputs
    data = FederatedDataModule.from_datasets(
        *(TensorSamples(inputs, (inputs[:, 0] > 0).long()) for _ in range(2)), partition=IID(num_clients=CLIENTS)
    )
    trainer = fit(tiny_federation(client=OneLogit(), attacks=[]), data, rounds=8, callbacks=[BackdoorMetrics()])
    assert float(trainer.callback_metrics["val/acc"]) > 0.85

    class Contrary(TinyClient):
        def predict_step(self, batch, batch_idx):
            return nn.functional.one_hot(2 - batch[1], 3).float()

    trainer = fit(tiny_federation(client=Contrary(), attacks=[]), rounds=1, callbacks=[BackdoorMetrics()])
    expected = (tiny_tensors(50, seed=1).targets == 1).float().mean()  # only the middle class is its own opposite
    assert float(trainer.callback_metrics["val/acc"]) == pytest.approx(float(expected))


def test_buffers_that_overflow_stay_as_they_are(caplog):
    class Overflow(FedAvg):
        def aggregate_buffers(self, shard):
            return super().aggregate_buffers(shard) * math.inf

    federation = tiny_federation(aggregator=Overflow())
    with caplog.at_level(logging.WARNING):
        fit(federation, rounds=1)
    assert not federation.client.get_buffer("net.1.running_mean").any()
    assert "buffers are not finite" in caplog.text


def test_observers_see_the_aggregate_before_the_server_steps():
    class Watch(L.Callback):
        def on_aggregate(self, federation, shard, aggregate):
            self.before, self.aggregate = vector(federation.client), aggregate.clone()
            assert shard.num_clients == 7

    watch = Watch()
    federation = tiny_federation()
    fit(federation, rounds=1, callbacks=[watch])
    torch.testing.assert_close(vector(federation.client), watch.before - watch.aggregate)
    assert watch.aggregate.any()


def test_data_of_one_federation_serve_another():
    data = tiny_data()
    assert "val/asr" in fit(tiny_federation(), data, rounds=1, callbacks=[BackdoorMetrics()]).callback_metrics
    trainer = fit(tiny_federation(attacks=[]), data, rounds=1, callbacks=[BackdoorMetrics()])
    assert "val/asr" not in trainer.callback_metrics


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_federation(buffers="trimed"), "trimmed, mean or keep, got 'trimed'"),
        (lambda: tiny_federation(bucket_bytes=-1), "bucket_bytes must be at least 1"),
        (lambda: tiny_federation(seed=-1), "the seed must lie in"),
        (lambda: tiny_federation(seed=1.5), "the seed must be a whole number, got 1.5 of type float; give an int"),
        (lambda: tiny_federation(seed=None), "the seed must be a whole number, got None"),
        (lambda: tiny_data(seed="x"), "data.seed must be a whole number, got 'x'"),
        (lambda: tiny_federation(bucket_bytes="1"), "model.bucket_bytes must be a whole number, got '1'"),
        (
            lambda: tiny_federation(attacks=Scale(1.0)),
            r"attacks must be a list of attacks, \[\] for none, got .*; give \[...\]",
        ),
        (lambda: tiny_federation(attacks=None), "model.attacks must be a list of attacks"),
        (lambda: tiny_federation(attacks=[Relabel]), r"each of model.attacks is the class Relabel; give .*: Relabel\(...\)"),
        (lambda: tiny_federation(attacks="Scale"), "each of model.attacks must be of type Attack, such as .*, got 'S'"),
        (lambda: tiny_federation(aggregator=FedAvg), r"model.aggregator is the class FedAvg; give an object .*: FedAvg\(...\)"),
        (
            lambda: tiny_federation(aggregator="FedAvg"),
            r"aggregator must be of type Aggregator, such as FedAvg\(\), got 'FedAvg'",
        ),
        (lambda: tiny_federation(cohort=None), "model.cohort must be of type CohortSampler, such as"),
        (lambda: tiny_federation(local=None), "model.local must be of type LocalTraining, such as"),
        (lambda: tiny_federation(server_optimizer=None), "model.server_optimizer must be a function that makes one, got None"),
        (lambda: tiny_federation(server_scheduler=0.5), "model.server_scheduler must be a function that makes one, got 0.5"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_a_single_sample_and_batchnorm_are_refused():
    with pytest.raises(ConfigurationError, match=r"holds 1 sample, and BatchNorm"):
        tiny_trainer().fit(tiny_federation(), tiny_data(IID(num_clients=150)))
    fit(tiny_federation(client=TinyClient(norm=False)), tiny_data(IID(num_clients=150)), rounds=1)


def test_hooks_that_are_not_called_are_named(caplog):
    class Hooked(TinyClient):
        def on_fit_start(self):
            raise AssertionError("never called")

        def on_train_batch_end(self, outputs, batch, batch_idx): ...

    with caplog.at_level(logging.WARNING):
        fit(tiny_federation(client=Hooked()), rounds=1)
    assert "does not call these hooks of the client Hooked: on_fit_start\n" in caplog.text
