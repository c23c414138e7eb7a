"""The round: against a hand-written loop, what clients leave behind, and evaluation."""

import copy
import logging
import math
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
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
    vector,
)
from torch import nn

from fl_lightning import CohortSampler, ConfigurationError, FederatedDataModule, LocalTraining
from fl_lightning.aggregators import FedAvg, Invariant
from fl_lightning.attacks import Attacker
from fl_lightning.callbacks import BackdoorMetrics
from fl_lightning.data import IID, TensorSamples
from fl_lightning.seeding import derive_seed, generator

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


def test_what_a_rule_draws_for_buffers_is_of_the_seed_and_the_round():
    drawn = []

    class Draws(FedAvg):
        def aggregate_buffers(self, shard):
            drawn.append(torch.rand((), generator=shard.generator("buffers")).item())
            return super().aggregate_buffers(shard)

    for seed in (0, 0, 1):
        fit(tiny_federation(aggregator=Draws(), seed=seed), rounds=2)
    first, again, other = drawn[:2], drawn[2:4], drawn[4:]
    assert first == again
    assert len({*first, *other}) == 4


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
