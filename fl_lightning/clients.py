"""A round's local trainings: the cohort's, and those that a rule or an attack asks for beside them.

Letters: N clients in the cohort, E further trainings (the server's root update first, then the attacks' rehearsals); K_r of
these N + E are trained on rank r.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.mixing import has_own
from fl_lightning.attacks.base import Attack, Attacker, Broadcast
from fl_lightning.cohort import Cohort, assign_owners
from fl_lightning.data.base import Samples
from fl_lightning.data.module import FederatedDataModule
from fl_lightning.modules.recordable import is_recordable
from fl_lightning.modules.structure import Structure
from fl_lightning.seeding import derive_seed, generator, seed_global_generators
from fl_lightning.training.branched_training import Averages, BranchedTraining
from fl_lightning.training.client_memory import ClientMemory
from fl_lightning.training.executor import LocalExecutor, adds_in_any_order
from fl_lightning.training.following import NEEDS_PYTHON, Following, followers
from fl_lightning.training.idle_clients import Taken, check_anybody_trained
from fl_lightning.training.in_stages import train_in_stages
from fl_lightning.training.local_round import LocalRound
from fl_lightning.training.local_training import LocalTraining, NotTogetherError
from fl_lightning.training.own_sources import OwnSources
from fl_lightning.training.peak_memory import PeakMemory
from fl_lightning.training.recipe import Recipe
from fl_lightning.training.recorded_steps import Held
from fl_lightning.training.stacked_training import StackedTraining
from fl_lightning.training.stopwatch import ATTACKERS_TRAINING, Stopwatch
from fl_lightning.updates.copying import copy_each
from fl_lightning.updates.exchange import Exchange, LocalUpdates
from fl_lightning.updates.layout import Layout, Snapshot

log = logging.getLogger(__name__)

BRANCHES_ON_A_GPU = 8
"""Clients side by side where none are asked for: with ResNet-18 on an H100 more gain nothing."""


@dataclass(frozen=True)
class Trained:
    """What a rank has after its local trainings.

    Attributes:
        updates: of the parameters, old minus new, K_r of them.
        buffer_updates: of the buffers.
        owner: (N + E,) int64, the rank that trained each; weights, malicious and clients go with it.
        weights: (N + E,) float32, sample counts; 1 for what is not a client's.
        malicious: (N + E,) bool.
        clients: (N + E,) int64, the clients' numbers; -1 for what is not a client's.
        rehearsed: for each attack, how many of the E it asked for, in their order.
        logs: of each client of the cohort among these K_r, its position in the cohort and what it logged.
        attackers_seconds: how long the malicious ones among them took, but for those that stood side by side with others.
    """

    updates: LocalUpdates
    buffer_updates: LocalUpdates
    owner: Tensor
    weights: Tensor
    malicious: Tensor
    clients: Tensor
    rehearsed: list[int]
    logs: list[tuple[int, dict[str, float]]]
    attackers_seconds: float


class Clients:
    """All clients of the federation, as far as this rank trains them: one after the other in the global module, or together.

    Args:
        module: holds the global weights, and has them again after `train`.
        data: what clients train on, after its setup.
        attacks: what malicious ones among them do.
        rule: the server's rule, which may train benign clients in its own way, or want an update of the server's own.
        local: how a client trains otherwise.
        exchanges: of parameters and of buffers.
        layouts: of parameters and of buffers.
        seed: the experiment's seed.
        benign: the numbers of all benign clients, ascending.
        recipe: how malicious clients train, where that is not as everyone.
        peak_memory: is told of malicious clients' training.

    Attributes:
        memory: what clients keep between rounds.
        branches: how many are trained side by side, once their steps are recorded; 1 for one after the other.
    """

    def __init__(
        self,
        module: L.LightningModule,
        data: FederatedDataModule,
        attacks: Sequence[Attack],
        rule: Aggregator,
        local: LocalTraining,
        exchanges: tuple[Exchange, Exchange],
        layouts: tuple[Layout, Layout],
        seed: int,
        benign: Sequence[int],
        recipe: Recipe | None = None,
        peak_memory: PeakMemory | None = None,
    ) -> None:
        assert data.task is not None, "setup() of the data module has not run"
        self.module, self.data, self.attacks, self.rule, self.local = module, data, attacks, rule, local
        self.exchange, self.buffer_exchange = exchanges
        self.layout, self.buffer_layout = layouts
        self.seed = seed
        self.num_classes = data.task.num_classes
        self.memory = ClientMemory(rule.client_memory_size(data.train, self.num_classes), self.exchange)
        self.benign = benign
        self.structure = Structure(module)
        self.executor = LocalExecutor(module, local)
        self.recipe = recipe
        self.peak_memory = peak_memory or PeakMemory(self.exchange.device)
        self.of_attackers = LocalExecutor(module, recipe.local, recipe.configure) if recipe else self.executor
        self.latest = self.executor  # which trained last
        self.in_python = followers(attacks, *NEEDS_PYTHON)
        self.alone = self.in_python or followers(attacks, "constrain")  # attacks that follow steps of one client at a time
        if self.in_python and any(of.chosen != "sequential" for of in (self.executor, self.of_attackers)):
            names = " and ".join(dict.fromkeys(type(attack).__name__ for attack in self.in_python))
            log.info("malicious clients are trained step by step in Python, as %s follows their steps; others are not", names)
        self.own_way = has_own(rule, "train_benign")
        if self.own_way and (local.executor == "stacked" or local.branches > 1):
            log.warning("clients are not trained together, as %s trains them in its own way", type(rule).__name__)
        self.stacked = StackedTraining(module, local) if local.executor == "stacked" and not self.own_way else None
        self.branched: BranchedTraining | None = None
        automatic = BRANCHES_ON_A_GPU if self.exchange.device.type == "cuda" else 1
        one_by_one = self.own_way or self.executor.chosen == "sequential"
        self.branches = 1 if one_by_one else local.branches or automatic
        self.leaks = followers(attacks, "leak")
        self.sources = OwnSources(module, data)
        self.looked = False
        # Nobody's own code takes part, or an order of sums that is the GPU's.
        self.proven = self.own_way or adds_in_any_order(self.exchange.device) or (is_recordable(module) and data.train.plain)

    def check_module(self, t: int) -> None:
        """Raise `ConfigurationError` if the module has other parameters in round t than the server's optimizer."""
        self.structure.check(self.module, f"a callback, a hook or a client in or before round {t}", objects=True)

    def train(self, t: int, cohort: Cohort, broadcast: Broadcast) -> Trained:
        """Train this rank's share of round t."""
        with isolate_rng():
            trained = self._train(t, cohort, broadcast)
        self.check_module(t)  # a client may have put another parameter of the same shape in a parameter's place
        return trained

    def _train(self, t: int, cohort: Cohort, broadcast: Broadcast) -> Trained:
        rank, world = self.exchange.rank, self.exchange.world
        attackers = [
            Attacker(client, self.seed, self.data.train, index, t)
            for client, index in zip(cohort.clients.tolist(), cohort.attackers.tolist(), strict=True)
            if index >= 0
        ]
        round_ = LocalRound(cohort, attackers, self.data, self.attacks)
        round_.plan(self.module)
        others = self.beside(t, round_)
        extra = len(others)
        sizes = torch.tensor([size for size, _ in others], dtype=torch.int64)
        owner = assign_owners(torch.cat([self.work(cohort), sizes]), world)
        mine = torch.nonzero(owner == rank).flatten().tolist()
        benign = torch.nonzero(~cohort.malicious).flatten()
        memory = self.memory.fetch(cohort.clients[benign], owner[benign])

        self.of_attackers.start = self.executor.start = Snapshot(self.module)
        watch = Stopwatch(self.exchange.device)
        updates = self.exchange.local_updates(len(owner), len(mine), broadcast.weights)
        buffer_updates = self.buffer_exchange.local_updates(len(owner), len(mine), self.buffer_layout.flatten(self.module))
        pieces, buffer_pieces = self.layout.pieces(updates.new), self.buffer_layout.pieces(buffer_updates.new)
        place = {position: k for k, position in enumerate(mine)}
        logs: dict[int, Averages] = {}  # asked for when all are trained, as a GPU would have to be waited for

        def keep(position: int, logged: Averages, held: Held | None = None) -> None:
            """Store what was trained as the update of who stands there, and start anew where it was trained in the module."""
            weights, buffers = held or (self.latest.weights, self.buffer_layout.tensors(self.module))
            copy_each(pieces, weights)
            updates.store(place[position])
            copy_each(buffer_pieces, buffers)
            buffer_updates.store(place[position])
            logs[position] = logged
            if held is None:
                self.latest.start_anew()
                self.sources.put_back()

        self.sources.put_back()  # as an evaluation may have changed global names
        if not self.proven:
            self.sources.remember()
        for position, logged, held in self.train_together(t, round_, mine):
            keep(position, logged, held)
        for position in mine:
            if position >= len(cohort):
                self.turn_to(self.executor)
                others[position - len(cohort)][1]()
                keep(position, dict)
            elif position not in logs and round_.malicious[position]:
                self.turn_to(self.of_attackers)
                with watch.running(), self.peak_memory.during(ATTACKERS_TRAINING):
                    logged = self.train_attacker(t, round_, position, broadcast)
                keep(position, partial(dict, logged))
            elif position not in logs:
                self.turn_to(self.executor)
                train = partial(self.train_client, t, round_, position, memory)
                keep(position, partial(dict, train() if self.proven else self.prove(train, round_, position)))
        self.of_attackers.start = self.executor.start = None
        if not self.looked:
            self.look(t, updates)
        self.sources.seed(self.seed, "between rounds", t)
        self.memory.give_back(memory, cohort.clients[benign], owner[benign])
        return Trained(
            updates,
            buffer_updates,
            owner,
            weights=torch.cat([cohort.weights, torch.ones(extra)]),
            malicious=torch.cat([cohort.malicious, torch.zeros(extra, dtype=torch.bool)]),
            clients=torch.cat([cohort.clients, torch.full((extra,), -1)]),
            rehearsed=[len(of_attack) for of_attack in round_.rehearsals],
            logs=[(position, of_client()) for position, of_client in logs.items() if position < len(cohort)],
            attackers_seconds=watch.read(),
        )

    def work(self, cohort: Cohort) -> Tensor:
        """(N,) int64, about how many samples each client of a cohort goes through, where a benign one takes each once."""
        if self.recipe is None:
            return cohort.weights.long()
        longer = self.recipe.local.epochs / self.local.epochs
        return torch.where(cohort.malicious, longer * cohort.weights.double(), cohort.weights.double()).long()

    def turn_to(self, executor: LocalExecutor) -> None:
        """Have another executor train in the module, as attackers with a recipe of their own have one."""
        if executor is not self.latest:
            executor.look_anew()
            self.latest = executor

    def train_together(self, t: int, round_: LocalRound, mine: list[int]) -> Iterator[tuple[int, Averages, Held | None]]:
        """Train clients in a stack or side by side, if that is asked for and possible.

        Stacks are of benign clients alone. Malicious ones may stand beside others unless an attack follows their steps, or they
        train otherwise.

        Yields:
            A position in the cohort, how to ask what its client logged, what it ends with; None where the module holds that.
        """
        if self.branches > 1 and self.branched is None and self.executor.chosen == "graph":
            self.branched = BranchedTraining(self.module, replace(self.local, branches=self.branches))
        if self.stacked is None and self.branched is None:
            return
        if self.sources.generators:
            log.warning("clients are trained one after the other, as %s draws by itself", next(iter(self.sources.generators)))
            self.stacked, self.branched, self.branches = None, None, 1
            return
        benign_alone = self.stacked is not None or self.recipe is not None or bool(self.alone)
        members = [position for position in mine if position < len(round_.cohort)]
        members = [position for position in members if not (benign_alone and round_.malicious[position])]
        given = []
        for position in members:
            client = round_.clients[position]
            seed_global_generators(derive_seed(self.seed, "client", t, client))
            samples = round_.poisoned[client] if round_.malicious[position] else self.benign_samples(client)
            given.append((samples, generator(self.seed, "batches", t, client)))
        if not given:
            return
        self.turn_to(self.executor)
        try:
            if self.branched is not None:
                for i, logs, held in self.branched.train(given, self.buffer_layout.names):
                    yield members[i], logs, held
            elif self.stacked is not None:
                for i, logs in self.stacked.train(given):
                    yield members[i], partial(dict, logs), None
        except NotTogetherError as error:
            # A stack is tried again in every round, as a run that is resumed must not know. Branches give the same bits anyway.
            log.warning("in round %d clients are trained one after the other: %s", t, error)
            if self.branched is not None:
                self.branched, self.branches = None, 1
        finally:
            self.executor.put_back()

    def look(self, t: int, updates: LocalUpdates) -> None:
        """In the first round of this process, on all ranks: see that somebody is trained."""
        self.looked = True
        counts = [executor.taken for executor in {self.executor, self.of_attackers}]
        taken = Taken(sum(one.batches for one in counts), sum(one.skipped for one in counts), updates.moved)
        check_anybody_trained(self.exchange.collect(taken), type(self.module).__name__, t)

    @property
    def way(self) -> str:
        """How clients are trained, as far as that has been decided."""
        if self.branched is not None:
            return f"graph, {self.branches} side by side"
        return "stacked" if self.stacked is not None else self.executor.chosen or "sequential"

    def benign_samples(self, client: int) -> Samples:
        """What a benign client trains on, which attacks may have reached into."""
        samples = self.data.client(client)
        for attack in self.leaks:
            samples = attack.leak(samples, client, self.benign, self.seed)
        return samples

    def train_client(self, t: int, round_: LocalRound, position: int, memory: dict[int, Tensor]) -> dict[str, float]:
        """Train a benign client; all its randomness comes from (seed, round, client). `executor` has its weights then.

        Returns:
            What it logged.
        """
        client = round_.clients[position]
        draws = partial(self.draws, t, "client", "batches", client)
        if self.leaks:
            draws()  # for attacks that draw from the global generators
        samples = self.benign_samples(client)
        with self.told(t, client, samples):
            logs = None
            if self.own_way:
                kept = memory.get(client, torch.empty(0))
                self.executor.look_anew()
                logs = self.rule.train_benign(self.module, samples, self.num_classes, draws(), kept)
            return self.executor.train(samples, draws) if logs is None else logs

    def train_attacker(self, t: int, round_: LocalRound, position: int, broadcast: Broadcast) -> dict[str, float]:
        """Train a malicious client likewise, by its own recipe if there is one. `of_attackers` has its weights then."""
        client = round_.clients[position]
        draws = partial(self.draws, t, "client", "batches", client)
        samples = round_.poisoned[client]
        with self.told(t, client, samples):
            if not len(samples):
                return {}
            following = Following(self.attacks, self.module, broadcast, client)
            if following.beginning:
                draws()  # for attacks that draw from the global generators
                following.begin()
            after_step = following.after_step if following.constraining else None
            if following.staging:
                logs = train_in_stages(self.of_attackers, samples, draws(), following, *round_.own_of(client))
            else:
                logs = self.of_attackers.train(samples, draws, after_step, follower=following if self.in_python else None)
            following.end()
            return logs

    @contextmanager
    def told(self, t: int, client: int, samples: Samples) -> Iterator[None]:
        """Around a client's training: errors say whose it was."""
        try:
            yield
        except Exception as error:
            kind = type(self.module).__name__
            error.add_note(f"while client {client}, a {kind}, was trained in round {t} on {len(samples)} samples")
            raise

    def prove(self, train: Callable[[], dict[str, float]], round_: LocalRound, position: int) -> dict[str, float]:
        """Train a client as `train` does; the first benign one again, to see that nothing from before or elsewhere goes in."""
        if not len(self.data.clients[round_.clients[position]]):
            return train()

        def ended() -> list[Tensor]:
            return [tensor.clone() for tensor in (*self.executor.weights, *self.buffer_layout.tensors(self.module))]

        self.proven = True
        return self.sources.prove(train, ended, self.executor.start_anew)

    def beside(self, t: int, round_: LocalRound) -> list[tuple[int, Callable[[], dict[str, float]]]]:
        """What is to be trained beside the clients: about how many samples that takes, and how to do it."""
        others = []
        if self.rule.needs_root:
            assert self.data.root_samples is not None, "Federation.check has not run"
            sizes = round_.cohort.weights.long().tolist()
            steps = round(sum(self.local.num_steps(n) for n in sizes) / len(sizes))
            train = partial(self.train_on, self.data.root_samples, t, "root", 0, steps)
            others.append((steps * self.local.batch_size, train))
        for i, samples in enumerate(samples for of_attack in round_.rehearsals for samples in of_attack):
            others.append((len(samples), partial(self.train_on, samples, t, "rehearsal", i)))
        return others

    def train_on(self, samples: Samples, t: int, purpose: str, number: int, steps: int | None = None) -> dict[str, float]:
        """Train on what no client reports; keyed by (seed, purpose, round, number)."""
        draws = partial(self.draws, t, purpose, f"{purpose} batches", number)
        return self.executor.train(samples, draws, steps=steps)

    def draws(self, t: int, purpose: str, batches: str, number: int) -> torch.Generator:
        """Seed the global generators for one training, and give the generator of its batches."""
        seed_global_generators(derive_seed(self.seed, purpose, t, number))
        self.sources.seed(self.seed, purpose, t, number)
        return generator(self.seed, batches, t, number)
