"""What rules and attacks may have trained beside the clients, and what clients and rules keep: on any ranks, across resumes."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from ranks import on_ranks
from tiny import CLIENTS, FEATURES, TinyClient, fit, tiny_federation, tiny_tensors

from fl_lightning import CohortSampler, FederatedDataModule, Federation
from fl_lightning.aggregators import Aggregator, Bucketing, FedAvg, FoolsGold, NearestNeighborMixing, SparseFed
from fl_lightning.attacks import Attack
from fl_lightning.callbacks import LastCheckpoint
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.data import IID, Classes, RootSet
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.exchange import Exchange


class Remembering(Aggregator):
    """Momentum on the coordinates, a root update, and clients that count how often they trained."""

    def forward(self, shard):
        momentum = self.recall("momentum", shard)
        momentum.mul_(0.5).add_(shard.mean())
        return momentum if shard.root is None else momentum + 0.1 * shard.root

    @property
    def needs_root(self):
        return True

    def client_memory_size(self, samples, num_classes):
        return num_classes

    def train_benign(self, client, samples, num_classes, generator, memory):
        memory += torch.arange(num_classes)
        inputs, targets = samples.batch(torch.randperm(len(samples), generator=generator)[:8])
        loss = torch.nn.functional.cross_entropy(client(inputs), targets)
        loss.backward()
        with torch.no_grad():
            for parameter in client.parameters():
                parameter -= 0.01 * float(memory.sum()) * parameter.grad
                parameter.grad = None
        return {"times": float(memory[1])}

    def accepts(self, probabilities):
        return probabilities.amax(1) > 0.45


class Plotting(Attack):
    """Uses every hook that an attack has."""

    watches_steps = True

    def __init__(self) -> None:
        self.planned = torch.zeros(2)
        self.seen: list[Any] = []

    def plan(self, module, datasets, attackers):
        self.planned += torch.rand(2) + next(module.parameters()).detach().sum()

    def conspire(self, datasets, attackers):
        """The first trains on everything, the others on nothing."""
        pool = datasets[0]
        nothing = pool.subset(torch.empty(0, dtype=torch.int64))
        return [pool.relabel(torch.zeros_like(pool.targets)), *(nothing for _ in datasets[1:])]

    def leak(self, dataset, client, benign, seed):
        return dataset.relabel((dataset.targets + 1) % 3) if client == benign[0] else dataset

    def rehearse(self, datasets, attackers, num_benign):
        return [*datasets, datasets[0]]

    def corrupt(self, shard, knowledge):
        rehearsed = knowledge.rehearsed
        rows = rehearsed.values.mean(0) + self.planned[0] * 1e-3 + 0.1 * knowledge.last_step
        for bucket, part in zip(shard.buckets, rows.split([b.shape[1] for b in shard.buckets]), strict=True):
            bucket[shard.malicious] += torch.where(knowledge.mask(shard)[: len(part)], part, 0.0)
        self.seen.append((rehearsed.num_clients, int(shard.malicious.sum())))

    def corrupt_buffers(self, shard):
        for bucket in shard.buckets:
            bucket[shard.malicious] *= 2

    def state_dict(self):
        return {"planned": self.planned}

    def load_state_dict(self, state):
        self.planned = state["planned"]


def data_with_root() -> FederatedDataModule:
    return FederatedDataModule.from_datasets(
        tiny_tensors(240), tiny_tensors(50, seed=1), partition=IID(num_clients=CLIENTS), root=RootSet(samples=20)
    )


def plotting_federation(rule: Aggregator, **kwargs: Any):
    cohort = CohortSampler(clients_per_round=6, malicious_fraction=0.34)
    return tiny_federation(aggregator=rule, attacks=[Plotting(), Plotting()], cohort=cohort, bucket_bytes=1, **kwargs)


def run(folder: str, rounds: int, world: int, *, resume: bool = False, wrapped: bool = False) -> tuple[Any, ...]:
    """Digest of the weights, what clients keep on this rank, metrics."""
    federation = plotting_federation(Bucketing(rule=Remembering(), bucket_size=1) if wrapped else Remembering())
    trainer = fit(
        federation,
        data_with_root(),
        rounds=rounds,
        devices=world,
        callbacks=[LastCheckpoint()],
        enable_checkpointing=True,
        default_root_dir=folder,
        ckpt_path="last" if resume else None,
    )
    kept = {client: row.tolist() for client, row in federation.clients.memory.rows.items()}
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    plotting = federation.attacks[0]
    assert isinstance(plotting, Plotting)
    return weights_sha256(federation.client), kept, logged, plotting.planned.tolist()


def together(results: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The results of all ranks, which must agree but for what clients keep."""
    digests, kept, logged, planned = zip(*results, strict=True)
    assert len(set(digests)) == 1
    assert all(of_rank == logged[0] for of_rank in logged)
    assert all(of_rank == planned[0] for of_rank in planned)
    assert sum(len(of_rank) for of_rank in kept) == len({client for of_rank in kept for client in of_rank})
    return digests[0], {client: row for of_rank in kept for client, row in of_rank.items()}, logged[0], planned[0]


@pytest.mark.slow
@pytest.mark.parametrize(("wrapped", "resumes"), [(False, [(3, 1), (1, 2), (2, 3)]), (True, [(3, 1)])])
def test_same_bits_on_any_number_of_ranks_and_after_a_resume_on_others(tmp_path, wrapped, resumes):
    function = run_wrapped if wrapped else run_plain
    whole = {
        world: together(on_ranks(world, function, str(tmp_path / f"{world}"), 4, world, False))
        for world in sorted({world for pair in resumes for world in pair})
    }
    assert all(of_world == whole[1] for of_world in whole.values())
    assert any(row[1] > 1 for row in whole[1][1].values())  # some client took part twice
    for first, then in resumes:
        folder = str(tmp_path / f"{first} then {then}")
        on_ranks(first, function, folder, 2, first, False)
        assert together(on_ranks(then, function, folder, 4, then, True)) == whole[1], (first, then)


def run_plain(folder: str, rounds: int, world: int, resume: bool) -> tuple[Any, ...]:
    return run(folder, rounds, world, resume=resume)


def run_wrapped(folder: str, rounds: int, world: int, resume: bool) -> tuple[Any, ...]:
    return run(folder, rounds, world, resume=resume, wrapped=True)


def test_every_rank_writes_its_own_part_and_those_of_neither_checkpoint_go(tmp_path):
    on_ranks(2, run_plain, str(tmp_path), 3, 2, False)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.pt*"))
    folders = [f"last.ckpt.shards/round-{step}" for step in (2, 3)]
    assert files == [f"{folder}/rank-{rank}-of-2.pt" for folder in folders for rank in (0, 1)]
    (tmp_path / files[3]).unlink()
    with pytest.raises(ConfigurationError, match=r"rank-1-of-2.pt cannot be read.*copy the folder last.ckpt.shards/round-3"):
        run_plain(str(tmp_path), 4, 1, True)


def test_attacks_get_their_rehearsals_and_nobody_else_does():
    federation = plotting_federation(FedAvg())
    fit(federation, rounds=2)
    for attack in federation.attacks:
        assert isinstance(attack, Plotting)
        assert [(rows, malicious + 1) for rows, malicious in attack.seen] == [(m + 1, m + 1) for _, m in attack.seen]
    assert federation.client_updates == 12


def test_a_client_without_data_reports_a_zero_update():
    norms = []

    class Watch(Plotting):
        def corrupt(self, shard, knowledge):
            norms.append(shard.norms()[shard.malicious.cpu()].tolist())

    fit(tiny_federation(attacks=[Watch()], cohort=CohortSampler(clients_per_round=6, malicious_fraction=0.5)), rounds=1)
    assert norms[0][0] > 0
    assert norms[0][1:] == [0.0, 0.0]


def test_the_last_step_is_how_the_global_model_moved():
    seen, weights = [], []

    class Watch(Attack):
        watches_steps = True

        def constrain(self, module, broadcast, step, steps):
            if step == 1:
                weights.append(broadcast.weights.clone())
                seen.append(broadcast.last_step.clone())

    cohort = CohortSampler(clients_per_round=4, malicious_fraction=0.25)
    fit(tiny_federation(attacks=[Watch()], cohort=cohort), rounds=3)
    assert seen[0].count_nonzero() == 0
    for t in (1, 2):
        torch.testing.assert_close(seen[t], weights[t - 1] - weights[t], rtol=0, atol=0)


def test_a_rule_that_needs_a_root_set_is_refused_without_one():
    with pytest.raises(ConfigurationError, match=r"Remembering needs clean samples of the server's own; set data.root"):
        fit(tiny_federation(aggregator=Remembering()), rounds=1)


@pytest.mark.parametrize(
    ("rule", "message"),
    [(SparseFed(k=100_000), "SparseFed.k is 100000"), (FoolsGold(last_layers=99), "FoolsGold.last_layers is 99")],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_rule_that_does_not_fit_the_model_is_refused_before_training(rule, message, wrapped):
    federation = tiny_federation(aggregator=NearestNeighborMixing(rule=rule) if wrapped else rule)
    with pytest.raises(ConfigurationError, match=message):
        fit(federation, rounds=1)
    assert federation.client_updates == 0


def test_a_root_update_that_is_not_finite_counts_as_zero(caplog):
    data = data_with_root()
    data.setup("fit")
    assert data.root_samples is not None
    data.root_samples = data.root_samples.with_inputs(torch.full((20, FEATURES), math.nan))  # pyrefly: ignore
    roots = []

    class Watch(Remembering):
        def forward(self, shard):
            roots.append(shard.root.clone())
            return super().forward(shard)

    federation = tiny_federation(aggregator=Watch())
    fit(federation, data, rounds=1)
    assert roots[0].count_nonzero() == 0
    assert "root set is not finite" in caplog.text
    assert all(parameter.isfinite().all() for parameter in federation.client.parameters())


def test_rejected_predictions_count_as_errors(monkeypatch):
    """Of two samples of the same class, one is predicted with little confidence."""

    class Fixed(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, inputs):
            return self.scale * inputs

        def training_step(self, batch, batch_idx):
            return self(batch[0]).sum() * 0

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    monkeypatch.setattr(Federation, "data", SimpleNamespace(outcome=Classes()))
    federation = tiny_federation(client=Fixed(), aggregator=Remembering())
    logits = torch.tensor([[3.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 3.0, 0.0]])
    output = federation.validation_step((((logits, torch.zeros(3)), torch.zeros(3, dtype=torch.int64))), 0)
    assert output is not None
    assert output["hits"].tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("hook", "gives", "said"),
    [
        ("accepts", None, r"Odd\.accepts must return True or False for each of \d+ predictions.*got a NoneType"),
        ("accepts", torch.ones(1, 1).bool(), r"got torch\.bool of shape \(1, 1\)"),
        ("accepts", torch.ones(1), r"got torch\.float32 of shape \(1,\)"),
        ("aggregate_buffers", None, r"Odd\.aggregate_buffers must return a number for each coordinate .*, got a NoneType"),
        ("aggregate_buffers", torch.zeros(1), r"got the shape \(1,\)"),
    ],
)
def test_what_other_hooks_of_a_rule_give_is_looked_at(hook, gives, said):
    odd = type("Odd", (FedAvg,), {hook: lambda self, given: gives})()
    with pytest.raises(ConfigurationError, match=said):
        fit(tiny_federation(client=TinyClient(norm=True), aggregator=odd), rounds=1)


def routed(world: int) -> bool:
    exchange = Exchange([5], torch.device("cpu"))
    draws = torch.Generator().manual_seed(0)
    for _ in range(5):
        count = int(torch.randint(0, 9, (1,), generator=draws))
        source, destination = torch.randint(0, world, (2, count), generator=draws)
        rows = {m: torch.arange(3.0) + 10 * m for m in range(count) if source[m] == exchange.rank}
        arrived = exchange.route(rows, source, destination, 3)
        assert sorted(arrived) == [m for m in range(count) if destination[m] == exchange.rank]
        assert all(torch.equal(row, torch.arange(3.0) + 10 * m) for m, row in arrived.items())
    return True


@pytest.mark.parametrize("world", [1, 2, 3])
def test_rows_arrive_where_they_are_wanted(world):
    assert all(on_ranks(world, routed, world))


def test_a_checkpoint_that_goes_takes_its_parts_along(tmp_path):
    from fl_lightning.checkpoints import sharded_state

    path = Path(tmp_path) / "a.ckpt"
    checkpoint = {"global_step": 7, sharded_state.KEY: {"start": 0, "coordinates": {}, "clients": {}}}
    assert sharded_state.write(checkpoint, path, 0, 2) is not None
    assert checkpoint[sharded_state.KEY] == {"folder": "a.ckpt.shards/round-7", "world": 2}
    assert (tmp_path / "a.ckpt.shards/round-7/rank-0-of-2.pt").exists()
    sharded_state.remove(path)
    assert not (tmp_path / "a.ckpt.shards").exists()
