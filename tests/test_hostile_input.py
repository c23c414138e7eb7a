"""Updates, modules, data and settings that a federation excludes, survives or refuses."""

import logging
import math
import re

import lightning as L
import pytest
import torch
from ranks import on_ranks
from tiny import (
    RULES,
    Scale,
    TinyClient,
    fit,
    tiny_data,
    tiny_federation,
    tiny_trainer,
    vector,
)

from fl_lightning import CohortSampler, ConfigurationError
from fl_lightning.aggregators import FedAvg, TrimmedMean
from fl_lightning.callbacks import AggregationDiagnostics
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.data import IID

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
