"""Edge-case backdoor: attackers train on rare inputs under a label of their choice, mixed with clean samples.

H. Wang, K. Sreenivasan, S. Rajput, H. Vishwakarma, S. Agarwal, J. Sohn, K. Lee, D. Papailiopoulos, "Attack of the
Tails: Yes, You Really Can Backdoor Federated Learning", NeurIPS 2020, https://arxiv.org/abs/2007.05084 (black-box
attack): images of Southwest Airlines planes, labelled "truck".

Sharing edge cases with benign clients by a probability is due to X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant
Aggregator for Defending against Federated Backdoor Attacks", AISTATS 2024, https://arxiv.org/abs/2210.01834, figure 4; mixing
batch by batch to the edge-case attack in C. He et al., "FedML: A Research Library and Benchmark for Federated Machine
Learning", 2020, https://arxiv.org/abs/2007.13518.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fl_lightning.attacks.base import Attack, Attacker, check_fraction
from fl_lightning.attacks.poisoning import PoisonedByBatch, pooled
from fl_lightning.data.base import Samples, TensorSamples
from fl_lightning.data.edge_pool import EdgePool
from fl_lightning.data.joined import join, named_as
from fl_lightning.data.sample_form import form
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator

EDGE_FRACTION = 0.2
"""Share of a batch: that of 100 edge-case samples beside 400 clean ones."""


class EdgeCase(Attack):
    """Black-box edge-case attack.

    A malicious client trains on `num_edge` edge-case samples labelled `target_label`, the same ones for every attacker,
    and `num_clean` clean samples under their own labels: a random part of its own partition, topped up from the whole
    training set where the partition is smaller. It thus trains on `num_edge + num_clean` samples whatever its size; the
    sample count that it reports, its weight in aggregation, stays the size of its clean partition. The same samples are
    drawn in every round.

    With `mix: batch` it goes through its own partition instead, and in every batch of b samples the last
    int(`edge_fraction` * b) give way to as many random ones of the `num_edge`, drawn anew for each batch.

    With a `shared_fraction` p benign clients hold edge-case samples too, under their true labels, so that they speak
    against the attack. Samples are shared by whole groups (`EdgePool.group_size`: the four rotations of a photo), each with
    one uniformly drawn benign client, the same in every round. The samples join the client's own in training; its weight
    stays that of its own. ASR is measured on the pool's test part, of which nobody trains on anything.

    Args:
        pool: the edge-case samples, split into training and test part.
        target_label: the class that edge-case samples shall be taken for, not their true one; 9 is "truck" in CIFAR-10.
        num_edge: edge-case samples per attacker, from 1 to the size of the pool's training part.
        num_clean: clean samples per attacker, at least 0; for `mix: dataset` alone.
        mix: whether edge-case samples are added to the attackers' data set, or written into its batches.
        edge_fraction: share of edge-case samples in a batch, in (0, 1]; for `mix: batch` alone. Batches of fewer than
            1 / `edge_fraction` samples have none.
        redraw: whether attackers draw other edge-case samples of the pool in every round.
        shared_fraction: p, in [0, 1]; 0, .15 and .30 in the paper on invariant aggregation.
        sharing: `copy` gives each group with probability p to a benign client, and attackers draw from all of the pool;
            `move` takes round(p * number of groups) groups from the attackers, who draw from the others.

    Differs from the papers: an attacker's clean samples are its own before they are anyone else's, and it keeps its clean
    partition's size as its weight, where Wang et al. (2020) give all attackers one shard of 400 drawn samples. To be shared
    they have two fixed sets of 100 and 700 images, dealt out to 5 and 10 of 200 clients, with other sets for attackers and
    test; the paper on invariant aggregation does not say how it shares. FedML draws from the whole pool, once per round and
    batch, and its last, smaller batch of an epoch gets as many edge-case samples as the others, on top of its own.

    Example:
        >>> attack = EdgeCase(pool=RotatedDigits(digit=1), target_label=9, num_edge=20, num_clean=80)
        >>> len(attack.poison(data.client(0), Attacker(client=0, seed=0, pool=data.train)))
        100
    """

    def __init__(
        self,
        *,
        pool: EdgePool,
        target_label: int = 9,
        num_edge: int = 100,
        num_clean: int = 400,
        mix: Literal["dataset", "batch"] = "dataset",
        edge_fraction: float = EDGE_FRACTION,
        redraw: bool = False,
        shared_fraction: float = 0.0,
        sharing: Literal["copy", "move"] = "copy",
    ) -> None:
        if num_edge < 1:
            raise ConfigurationError(f"EdgeCase.num_edge must be at least 1, got {num_edge}; without it there is no attack")
        if num_clean < 0:
            raise ConfigurationError(f"EdgeCase.num_clean must be at least 0, got {num_clean}")
        if mix not in ("dataset", "batch"):
            raise ConfigurationError(f"EdgeCase.mix must be dataset or batch, got {mix!r}")
        if sharing not in ("copy", "move"):
            raise ConfigurationError(f"EdgeCase.sharing must be copy or move, got {sharing!r}")
        check_fraction("EdgeCase.edge_fraction", edge_fraction, usual=EDGE_FRACTION)
        if mix == "dataset" and edge_fraction != EDGE_FRACTION:
            raise ConfigurationError(
                f"EdgeCase.edge_fraction is {edge_fraction}, but is for mix: batch alone; under mix: dataset the share comes "
                "from num_edge and num_clean"
            )
        if not 0 <= shared_fraction <= 1:
            raise ConfigurationError(
                f"EdgeCase.shared_fraction must lie in [0, 1], got {shared_fraction}; 0, .15 and .30 are usual"
            )
        self.pool = pool
        self.target_label = self._target = target_label
        self.source_label = pool.label
        self.num_edge = num_edge
        self.num_clean = num_clean
        self.mix = mix
        self.edge_fraction = edge_fraction
        self.redraw = redraw
        self.shared_fraction = shared_fraction
        self.sharing = sharing

    def prepare(self) -> None:
        """Fetch the pool if it is not on this machine yet."""
        self.pool.prepare()

    def validate(self, num_classes: int) -> None:
        if not 0 <= self._target < num_classes:
            raise ConfigurationError(
                f"EdgeCase.target_label must be from 0 to {num_classes - 1}, as the task has {num_classes} classes, "
                f"got {self._target}"
            )
        self._check_size()
        labels = torch.cat([self.pool.train().targets.cpu(), self.pool.test().targets.cpu()]).unique().tolist()
        if labels[0] < 0 or labels[-1] >= num_classes:
            raise ConfigurationError(
                f"EdgeCase.pool holds the true labels {labels}, but the task's are 0 to {num_classes - 1}; use a pool "
                "made for this task"
            )
        if self._target in labels:
            raise ConfigurationError(
                f"EdgeCase.target_label is {self._target}, which is a true label of the pool ({labels}), so there "
                "is nothing to attack; choose another class"
            )

    def poison(self, dataset: Samples, attacker: Attacker) -> Samples:
        self._check_size()
        edge = self._as_target(self._edge(attacker), dataset)
        if self.mix == "batch":
            return EdgeBatches(dataset, edge, self.edge_fraction)
        return join([*self._clean(dataset, attacker), edge])

    def leak(self, dataset: Samples, client: int, benign: Sequence[int], seed: int) -> Samples:
        place = bisect_left(benign, client)  # of many clients; looking through all would take longer than to train one
        if not self.shared_fraction or place == len(benign) or benign[place] != client:
            return dataset
        shared = self._shared(seed)
        holders = torch.randint(len(benign), (len(shared),), generator=generator(seed, "attack: holders of edge-case groups"))
        rows = self._samples_of(shared & (holders == place))
        return join([dataset, self._like(self.pool.train().subset(rows), dataset)]) if len(rows) else dataset

    def stamp(self, test: Samples) -> Samples | None:
        pool = self.pool.test()
        others = torch.nonzero(pool.targets != self._target).squeeze(1)
        return self._as_target(pool.subset(others), test) if len(others) else None

    def _clean(self, dataset: Samples, attacker: Attacker) -> list[Samples]:
        """`num_clean` samples: own ones first, then some of everyone's, each part without repeats."""
        draws = attacker.generator("edge-case clean samples")
        if len(dataset) >= self.num_clean:
            return [dataset.subset(torch.randperm(len(dataset), generator=draws)[: self.num_clean])]
        missing = self.num_clean - len(dataset)
        if missing > len(attacker.pool):
            raise ConfigurationError(
                f"EdgeCase.num_clean is {self.num_clean}, but client {attacker.client} has {len(dataset)} samples and "
                f"the training set only {len(attacker.pool)} to top up from; use a smaller num_clean"
            )
        return [dataset, attacker.pool.subset(torch.randperm(len(attacker.pool), generator=draws)[:missing])]

    def _edge(self, attacker: Attacker) -> Samples:
        """The attackers' edge-case samples, under their true labels."""
        taken = self._shared(attacker.seed) if self.sharing == "move" else torch.zeros(self._num_groups, dtype=torch.bool)
        rows = self._samples_of(~taken)
        purpose = f"edge-case samples, round {attacker.round_number}" if self.redraw else "edge-case samples"
        drawn = torch.randperm(len(rows), generator=attacker.generator(purpose, shared=True))[: self.num_edge]
        return self.pool.train().subset(rows[drawn])

    def _as_target(self, edge: Samples, like: Samples) -> Samples:
        """Edge-case samples under the target label, otherwise as `like`."""
        return self._like(edge.relabel(torch.full_like(edge.targets, self._target)), like)

    def _like(self, edge: Samples, like: Samples) -> Samples:
        """Edge-case samples on the device of `like` and augmented alike, if both are tensors."""
        if not (isinstance(edge, TensorSamples) and isinstance(like, TensorSamples)):
            edge = named_as(edge, like)
            self._check_joined(edge, like)
            return edge
        if edge.inputs.shape[1:] != like.inputs.shape[1:]:
            raise ConfigurationError(
                f"EdgeCase.pool holds inputs of shape {tuple(edge.inputs.shape[1:])}, but the task's are "
                f"{tuple(like.inputs.shape[1:])}; use a pool made for this task"
            )
        if edge.prepare != like.prepare:
            raise ConfigurationError(
                f"EdgeCase.pool makes model inputs by {edge.prepare}, but the task by {like.prepare}; use a pool made for this "
                "task, with the same settings"
            )
        edge = edge.to(like.inputs.device)
        # A run without augmentation has none for edge-case samples either.
        return TensorSamples(edge.inputs, edge.targets, augment=like.augment, prepare=edge.prepare)

    def _check_joined(self, edge: Samples, like: Samples) -> None:
        """Raise `ConfigurationError` unless one batch can hold samples of both, which are joined one by one."""
        forms = [form(part[0]) for part in (edge, like) if len(part)]
        if forms[0] != forms[-1]:
            raise ConfigurationError(
                f"EdgeCase.pool holds samples of the form {forms[0]}, but the task's are {forms[-1]}, and a batch holds both; "
                "use a pool made for this task"
            )

    # ---- groups of edge-case samples ---------------------------------------------------------------------------------

    @property
    def _num_groups(self) -> int:
        """G."""
        return -(-len(self.pool.train()) // self.pool.group_size)

    def _shared(self, seed: int) -> Tensor:
        """(G,) bool, the groups that some benign client holds."""
        draws = generator(seed, "attack: shared edge-case groups")
        if self.sharing == "copy":
            return torch.rand(self._num_groups, generator=draws) < self.shared_fraction
        shared = torch.zeros(self._num_groups, dtype=torch.bool)
        shared[torch.randperm(self._num_groups, generator=draws)[: self._num_moved]] = True
        return shared

    @property
    def _num_moved(self) -> int:
        """Groups that are taken from the attackers."""
        return round(self.shared_fraction * self._num_groups) if self.sharing == "move" else 0

    def _samples_of(self, groups: Tensor) -> Tensor:
        """(m,) int64, the positions in the pool's training part of all samples of some groups ((G,) bool)."""
        return torch.nonzero(groups.repeat_interleave(self.pool.group_size)[: len(self.pool.train())]).squeeze(1)

    def _check_size(self) -> None:
        size, moved = len(self.pool.train()), self._num_moved * self.pool.group_size
        if self.num_edge > size - moved:
            given_away = f", of which EdgeCase.shared_fraction = {self.shared_fraction} moves {moved} to benign clients"
            raise ConfigurationError(
                f"EdgeCase.num_edge is {self.num_edge}, but the pool holds only {size} training samples"
                f"{given_away if moved else ''}; use at most {max(0, size - moved)}{', or a lower share' if moved else ''}"
            )


class EdgeBatches(PoisonedByBatch):
    """Clean samples of which the last ones of every batch give way to random edge-case samples.

    Its length, order and `targets` are those of the clean samples.

    Args:
        clean: the client's own samples.
        edge: the edge-case samples, at least one.
        fraction: p; int(p * b) of a batch of b samples are replaced. Within a batch no edge-case sample comes twice, unless
            there are too few.
    """

    setting = "mix: batch"

    def __init__(self, clean: Samples, edge: Samples, fraction: float) -> None:
        self.clean, self.edge, self.fraction = clean, edge, fraction
        self.targets = clean.targets
        self.both = join([clean, edge])

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Any:
        """As in any `Samples`; without a generator the edge-case samples are the first ones."""
        count, n = int(self.fraction * len(indices)), len(self.edge)
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        drawn = len(self.clean) + order[torch.arange(count) % n]
        return self.both.batch(torch.cat([indices[: len(indices) - count], drawn.to(indices.device)]), generator)

    @classmethod
    def pool(cls, parts: Sequence[Samples]) -> Samples:
        """Edge cases of all of them, in the same share of a batch."""
        own = [of for of in parts if isinstance(of, EdgeBatches)]
        clean = pooled([of.clean if isinstance(of, EdgeBatches) else of for of in parts])
        return EdgeBatches(clean, join([of.edge for of in own]), own[0].fraction)

    def subset(self, indices: Tensor) -> EdgeBatches:
        return EdgeBatches(self.clean.subset(indices), self.edge, self.fraction)

    def relabel(self, targets: Tensor) -> EdgeBatches:
        """Of the clean samples; those of edge cases stay."""
        return EdgeBatches(self.clean.relabel(targets), self.edge, self.fraction)

    def to(self, device: torch.device) -> EdgeBatches:
        return EdgeBatches(self.clean.to(device), self.edge.to(device), self.fraction)
