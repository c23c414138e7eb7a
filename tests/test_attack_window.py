"""An attack with a beginning, an end and pauses: whom cohorts hold, and that nobody attacks outside."""

import copy
from typing import Any

import lightning as L
import pytest
import torch
from ranks import on_ranks
from tiny import Scale, TinyClient, tiny_data, tiny_federation, tiny_tensors, tiny_trainer, vector
from torch import Tensor, nn

from fl_lightning import (
    BackdoorLifespan,
    BackdoorMetrics,
    CohortSampler,
    ConfigurationError,
    Federation,
    LastCheckpoint,
    LocalTraining,
    RunRecord,
)
from fl_lightning.aggregators import FedAvg
from fl_lightning.attacks import Attack, Attacker, Neurotoxin, ValueTrigger
from fl_lightning.callbacks.digests import compare, config_sha256, experiment, weights_sha256
from fl_lightning.data import IID, Samples
from fl_lightning.seeding import generator

SIZES = torch.arange(100) % 37 + 1
KINDS: dict[str, dict[str, Any]] = {
    "fixed_share": {},
    "random_pool": {},
    "fixed_frequency": {"attackers": 2},
    "single_shot": {"rounds": (3, 5, 5)},
}


def sampler(kind: str, **window: Any) -> CohortSampler:
    return CohortSampler(participation=kind, **KINDS[kind], **window)  # type: ignore[arg-type]


# ---- cohorts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["benign", "absent"])
@pytest.mark.parametrize("kind", KINDS)
def test_malicious_clients_attack_in_the_window_alone(kind, after):
    window = sampler(kind, start_round=3, end_round=8, interval=2, after=after)
    endless = sampler(kind, start_round=3, interval=2)
    malicious = set(window.malicious_clients(0, 100).tolist())
    attacked = []
    for t in range(14):
        cohort, other = window.draw(0, t, SIZES), endless.draw(0, t, SIZES)
        assert len(set(cohort.clients.tolist())) == 20
        assert torch.equal(cohort.malicious, cohort.attackers >= 0)
        if cohort.malicious.any():
            attacked.append(t)
        if t < 8 or after == "benign":  # cohorts are made up as without an end
            assert torch.equal(cohort.clients, other.clients)
        else:
            assert not malicious & set(cohort.clients.tolist())
        if t < 8:
            assert torch.equal(cohort.attackers, other.attackers)
    assert attacked == [3, 5] if kind == "single_shot" else [3, 5, 7]
    assert list(window.attacked_rounds(100)) == attacked
    assert list(window.attacked_rounds(6)) == [3, 5]
    assert window.ends
    assert endless.ends == (kind == "single_shot")


def test_absent_clients_are_replaced_by_benign_ones_alike():
    """Each of the 80 benign clients is drawn in a quarter of the rounds; none of the 20 malicious ones is."""
    window = CohortSampler(end_round=1, after="absent")
    drawn = torch.zeros(100)
    for t in range(1, 401):
        drawn[window.draw(0, t, SIZES).clients] += 1
    malicious = window.malicious_clients(0, 100)
    assert not drawn[malicious].any()
    others = drawn[torch.tensor([i for i in range(100) if i not in malicious.tolist()])]
    assert float(others.mean()) == 100
    # Of a binomial with 400 draws of .25 the deviation is 8.7; six of them lie beyond any of 80 clients.
    assert float((others - 100).abs().max()) < 6 * 8.7


def test_pauses_are_as_the_rounds_before():
    assert [int(sampler("fixed_share", interval=3).draw(0, t, SIZES).malicious.sum()) for t in range(7)] == [
        4,
        0,
        0,
        4,
        0,
        0,
        4,
    ]
    malicious = set(sampler("fixed_share").malicious_clients(0, 100).tolist())
    shared, frequent = sampler("fixed_share", interval=3), sampler("fixed_frequency", interval=3)
    assert len(malicious & set(shared.draw(0, 1, SIZES).clients.tolist())) == 4
    assert not malicious & set(frequent.draw(0, 1, SIZES).clients.tolist())


def test_an_interval_that_is_left_out_is_the_one_of_its_kind():
    assert list(sampler("fixed_share", end_round=3).attacked_rounds(100)) == [0, 1, 2]
    assert list(sampler("fixed_frequency", end_round=21).attacked_rounds(100)) == [0, 10, 20]
    assert list(CohortSampler(malicious_fraction=0.0).attacked_rounds(9)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start_round": 4, "end_round": 4}, "end_round = 4 .* start_round = 4; give at least 5, or null"),
        ({"end_round": 1.5}, "end_round must be a whole number, got 1.5"),
        ({"interval": 0}, "interval must be at least 1, got 0"),
        ({"interval": True}, "interval must be a whole number, got True"),
        ({"after": "absent"}, "after = absent says what follows the attack, which has no end; give end_round too"),
        ({"after": "gone", "end_round": 2}, "after must be benign or absent, got 'gone'"),
        (
            {"participation": "single_shot", "rounds": (3, 9), "end_round": 9},
            r"rounds = \[9\]: not in the attack's window, start_",
        ),
        (
            {"participation": "single_shot", "rounds": (2, 3), "interval": 2},
            r"rounds = \[3\]: .* start_round = 0, interval = 2",
        ),
    ],
)
def test_windows_without_a_round_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        CohortSampler(**settings)


def test_too_few_benign_clients_for_rounds_without_the_others():
    with pytest.raises(ConfigurationError, match=r"from round 3 on a round needs 20 benign clients, but .* of 24 leaves 19"):
        CohortSampler(participation="random_pool", end_round=3, after="absent").check(24)
    CohortSampler(participation="random_pool", end_round=3).check(24)


# ---- records of before -----------------------------------------------------------------------------------------------

OLD = {"clients_per_round": 20, "malicious_fraction": 0.2, "start_round": 0, "attackers": 1, "rounds": []}


def digest(**cohort: Any) -> str:
    return config_sha256({"model": {"cohort": {**OLD, **cohort}}})


SAME = [
    ("fixed_share", 10, None),
    ("fixed_share", 10, 1),
    ("fixed_frequency", 10, None),
    ("fixed_frequency", 10, 10),
    ("fixed_frequency", 3, 3),
    ("single_shot", 10, None),
]
"""Kind, `every` as it was written before, and `interval` of now."""


@pytest.mark.parametrize(("kind", "every", "interval"), SAME)
def test_a_window_left_out_leaves_the_digest_as_it_was(kind, every, interval):
    window = {"interval": interval, "end_round": None, "after": "benign"}
    assert digest(participation=kind, every=every) == digest(participation=kind, **window)
    assert digest(participation=kind, **window) != digest(participation=kind, **{**window, "end_round": 5})
    assert digest(participation=kind, **window) != digest(participation=kind, **{**window, "interval": 7})


def test_the_digest_of_before_is_the_one_that_it_was():
    assert digest(participation="fixed_share", every=10)[:16] == "cf47edf16decedf2"


def test_a_difference_goes_by_its_name_of_now():
    there, here = (
        {"model": {"cohort": {**OLD, "participation": "fixed_frequency", key: n}}} for key, n in (("every", 3), ("interval", 5))
    )
    told = list(compare(experiment(there, rounds=False), experiment(here, rounds=False)))
    assert told == ["model.cohort.interval is 3 there and 5 here"]


# ---- rounds ----------------------------------------------------------------------------------------------------------


class Watched(Attack):
    """Notes which of its hooks are called, by round."""

    watches_steps = True

    def __init__(self) -> None:
        self.called: set[tuple[str, int]] = set()
        self.buffers = 0  # how often, as their shard does not say in which round

    def plan(self, module, datasets, attackers) -> None:
        self.called.add(("plan", attackers[0].round_number))

    def conspire(self, datasets, attackers):
        self.called.add(("conspire", attackers[0].round_number))
        return super().conspire(datasets, attackers)

    def poison(self, dataset, attacker):
        self.called.add(("poison", attacker.round_number))
        return dataset

    def rehearse(self, datasets, attackers, num_benign):
        self.called.add(("rehearse", attackers[0].round_number))
        return list(datasets)

    def constrain(self, module, broadcast, step, steps) -> None:
        self.called.add(("constrain", broadcast.round_number))

    def corrupt(self, shard, knowledge) -> None:
        self.called.add(("corrupt", shard.round_number))

    def corrupt_buffers(self, shard) -> None:
        self.buffers += 1

    def stamp(self, test):
        return test


class Flags(L.Callback):
    """Notes how many rows are malicious to rules, by round."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_aggregate(self, federation, shard, aggregate) -> None:
        self.counts.append(int(shard.malicious.sum()))


@pytest.mark.parametrize("after", ["benign", "absent"])
def test_no_hook_of_an_attack_is_called_outside_its_window(after):
    attack, flags, record = Watched(), Flags(), RunRecord()
    cohort = CohortSampler(clients_per_round=5, malicious_fraction=0.3, start_round=1, end_round=4, interval=2, after=after)
    trainer = tiny_trainer(6, callbacks=[flags, BackdoorMetrics(), record], fast_dev_run=6)
    trainer.fit(tiny_federation(attacks=[attack], cohort=cohort, aggregator=FedAvg()), tiny_data())
    hooks = {"plan", "conspire", "poison", "rehearse", "constrain", "corrupt"}
    assert attack.called == {(hook, t) for hook in hooks for t in (1, 3)}
    assert attack.buffers == 2
    assert [count > 0 for count in flags.counts] == [False, True, False, True, False, False]
    assert len([entry for entry in record.history.entries if "asr" in entry]) == 6  # measured all the same


def test_a_quiet_round_is_that_of_a_federation_without_attack():
    """Up to the first attack, and in what the clients do after the last one, bits are those of a run with no attacks."""
    window = CohortSampler(clients_per_round=5, malicious_fraction=0.3, start_round=2, end_round=3)
    calm = CohortSampler(clients_per_round=5, malicious_fraction=0.3, start_round=99)
    attacked, never = tiny_federation(cohort=window, attacks=[ValueTrigger(column=5), Scale(3.0)]), tiny_federation(cohort=calm)
    tiny_trainer(2).fit(attacked, tiny_data())
    tiny_trainer(2).fit(never, tiny_data())
    assert torch.equal(vector(attacked.client), vector(never.client))


# ---- by hand ---------------------------------------------------------------------------------------------------------

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


# ---- resuming --------------------------------------------------------------------------------------------------------


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


class KilledError(Exception):
    pass


class KillAt(L.Callback):
    """Ends the process' training in the middle of a round."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_aggregate(self, federation, shard, aggregate) -> None:
        if federation.global_step >= self.step:
            raise KilledError


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
