"""Lockdown: clients train in sparse subspaces of their own, and weights that too few of them hold are pruned in the end.

T. Huang, S. Hu, K.-H. Chow, F. Ilhan, S. F. Tekin, L. Liu, "Lockdown: Backdoor Defense for Federated Learning with Isolated
Subspace Training", NeurIPS 2023, https://openreview.net/forum?id=V5cQH7JbGo, with the settings of its published code.

Letters: d trainable parameters, N clients of a round, T rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from fl_lightning.aggregators.fedavg import FedAvg
from fl_lightning.aggregators.sparse_masks import erk_densities, prune_and_regrow, random_mask
from fl_lightning.checked import whole
from fl_lightning.data.base import Samples
from fl_lightning.data.passes import read_batch, shuffled_batches
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.outputs import class_logits
from fl_lightning.seeding import generator as seeded
from fl_lightning.updates.layers import Layer
from fl_lightning.updates.layout import Snapshot, parameter_layout
from fl_lightning.updates.shard import UpdateShard


class Lockdown(FedAvg):
    """A(G) = sum_i n_i g_i / sum_j n_j, where a benign client's g_i is 0 outside of its mask m_i; then weights are pruned.

    A benign client in round t, from the global weights w:

    - Its model is m_i w. It takes `epochs` passes of plain SGD whose gradients are masked. While t <= T/2 the loss has
      + `l1` ||w||_1 beside the cross entropy.
    - g_i = m_i w - what has become of it, 0 elsewhere.
    - Then its mask moves: of every parameter tensor the share a_t = (`anneal` / 2)(1 + cos(pi t / (T/2))) of the weights that
      it holds, rounded up, is given up where they are smallest, and as many others are taken up where the gradient over its
      data, in evaluation mode, is largest. After T/2 masks stay.

    Masks begin with the density `density` over all trainable tensors, biases too: shared out by Erdos-Renyi-Kernel (`erk`,
    where biases end up dense) or `uniform`. They all begin as the same one, in every run; with an anneal of .0001 they hardly
    part, and attackers who train inside of it are not pruned. With `same_mask` false each client draws its own: then `theta`
    must be about `density` or less, or nothing is left.

    Consensus: a weight stays if at least `theta` N clients of the last round changed it. Evaluation and predictions see the
    model with the others at 0 while the dense one is trained on; after round T - 1 they are 0 for good.

    What one may expect and is not so: malicious clients train densely, as `model.local` or `model.attackers` says, so they hold
    every weight in the consensus, and f >= `theta` N of them switch it off. What a client holds is told by its update, so who
    is not in the round has no say, and a weight in its mask that did not move is not held. The module's `training_step` and
    `configure_optimizers` serve malicious clients alone; `forward` must map one tensor to logits. Buffers are combined by the
    weighted mean.

    Bounds: f < `theta` N, and benign clients must agree on masks.

    Verdict: none, as it judges weights and not clients.

    Memory: a mask of d float32 numbers for each client, shared out over ranks, and d bytes on every rank.

    Cost: a client takes one pass over its data more, without a step, while masks move. A round has an all-reduce of d int64
    numbers.

    Args:
        rounds: T, at least 1; that of `trainer.max_epochs`.
        density: share of the weights that a client holds, in (0, 1].
        densities: how it is shared out over the tensors.
        anneal: a_0, in [0, 1].
        l1: at least 0.
        same_mask: whether all clients begin with one mask, as in the published code; the paper speaks of random ones.
        theta: share of the round's clients, in [0, 1]; 20 of 40, and 10 of 20, in published code.
        epochs: passes over a client's data in a round, at least 1.
        batch_size: at least 1. A last batch of one is joined to the one before it.
        learning_rate: more than 0.
        weight_decay: at least 0.

    Differs from the published code: it counts the masks of all clients, which are all in every round there; its attackers may
    train sparsely too; it takes the gradient after the smallest weights are gone, and drops a last batch that is not whole.

    Example:
        >>> Lockdown(rounds=100).prune_share(25)
        5e-05
        >>> Lockdown()(torch.tensor([[1.0, 0.0], [4.0, 3.0]]), torch.tensor([2.0, 1.0]))
        tensor([2., 1.])
    """

    consensus: Tensor

    def __init__(
        self,
        *,
        rounds: int = 200,
        density: float = 0.25,
        densities: Literal["erk", "uniform"] = "erk",
        anneal: float = 1e-4,
        l1: float = 1e-4,
        same_mask: bool = True,
        theta: float = 0.5,
        epochs: int = 2,
        batch_size: int = 64,
        learning_rate: float = 0.1,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__()
        if not 0 < density <= 1:
            raise ConfigurationError(f"Lockdown.density must lie in (0, 1], got {density}; .25 is usual")
        if densities not in ("erk", "uniform"):
            raise ConfigurationError(f"Lockdown.densities must be 'erk' or 'uniform', got {densities!r}")
        for name, share in (("anneal", anneal), ("theta", theta)):
            if not 0 <= share <= 1:
                raise ConfigurationError(f"Lockdown.{name} must lie in [0, 1], got {share}; it is a share")
        for name, value in (("l1", l1), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise ConfigurationError(f"Lockdown.{name} must be at least 0 and finite, got {value}; 0 leaves it out")
        if not 0 < learning_rate < math.inf:
            raise ConfigurationError(f"Lockdown.learning_rate must be more than 0 and finite, got {learning_rate}; .1 is usual")
        self.rounds = whole("Lockdown.rounds", rounds, 1)
        self.density = density
        self.densities = densities
        self.anneal = anneal
        self.l1 = l1
        self.same_mask = same_mask
        self.theta = theta
        self.epochs = whole("Lockdown.epochs", epochs, 1)
        self.batch_size = whole("Lockdown.batch_size", batch_size, 1)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.round_number = 0
        self.layout: tuple[list[int], list[float]] = [], []  # sizes of the parameter tensors, and their densities
        self.first_mask = torch.empty(0)
        self.register_buffer("consensus", torch.empty(0, dtype=torch.bool))  # (d,) once the model is known

    def check_model(self, layers: Sequence[Layer]) -> None:
        """Draw the mask that all clients begin with."""
        sizes, shapes = [layer.size for layer in layers], [layer.shape for layer in layers]
        uniform = [self.density] * len(sizes)
        shares = uniform if self.densities == "uniform" else erk_densities(shapes, self.density)
        self.layout = sizes, shares
        self.first_mask = random_mask(sizes, shares, seeded(0, "Lockdown: mask"))
        if len(self.consensus) != len(self.first_mask):
            self.consensus = torch.ones(len(self.first_mask), dtype=torch.bool, device=self.consensus.device)

    def forget(self) -> None:
        super().forget()
        self.round_number = 0
        self.consensus = torch.ones_like(self.consensus)

    def client_memory_size(self, samples: Samples, num_classes: int) -> int:
        return len(self.first_mask)

    # ---- a client ----------------------------------------------------------------------------------------------------

    def prune_share(self, round_number: int) -> float:
        """a_t, of the weights that a client holds, those that it exchanges."""
        half = self.rounds / 2
        return self.anneal / 2 * (1 + math.cos(math.pi * round_number / half)) if round_number <= half else 0.0

    def before_broadcast(self, module: L.LightningModule, round_number: int) -> None:
        self.round_number = round_number  # which train_benign is not told

    def train_benign(
        self, client: L.LightningModule, samples: Samples, num_classes: int, generator: torch.Generator, memory: Tensor
    ) -> dict[str, float]:
        """Train under the client's mask, which it keeps. Logs `loss`, the cross entropy."""
        if not memory.any():
            memory.copy_(self.first_mask if self.same_mask else random_mask(*self.layout, generator))
        if not len(samples):
            return {}
        layout = parameter_layout(client)
        start = layout.flatten(client)
        layout.load(client, memory * start)
        loss = self.train_under(client, samples, layout.pieces(memory.clone()), generator)
        trained = layout.flatten(client)
        if share := self.prune_share(self.round_number):
            gradient = torch.cat([part.flatten() for part in self.gradients(client, samples)])
            parts = zip(*(vector.split(layout.sizes) for vector in (memory, trained, gradient)), strict=True)
            moved = torch.cat([prune_and_regrow(mask, weights, of, share) for mask, weights, of in parts])
        else:
            moved = memory
        layout.load(client, torch.where(memory > 0, trained, start))
        memory.copy_(moved)
        return {"loss": loss}

    def train_under(
        self, client: L.LightningModule, samples: Samples, masks: list[Tensor], generator: torch.Generator
    ) -> float:
        """Take the steps of a round; masks are of the trainable parameters' shapes. The mean cross entropy is returned."""
        parameters = [parameter for parameter in client.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        sparser = self.l1 if self.round_number <= self.rounds / 2 else 0.0
        client.train()
        total, steps = torch.zeros((), device=masks[0].device), 0
        for _ in range(self.epochs):
            for indices in shuffled_batches(len(samples), self.batch_size, generator):
                inputs, targets = read_batch(samples, indices, masks[0].device, generator)
                loss = F.cross_entropy(class_logits(client, inputs, "Lockdown"), targets)
                total += loss.detach()
                steps += 1
                if sparser:
                    loss = loss + sparser * torch.stack([parameter.abs().sum() for parameter in parameters]).sum()
                optimizer.zero_grad()
                loss.backward()
                for parameter, mask in zip(parameters, masks, strict=True):
                    if parameter.grad is not None:
                        parameter.grad.mul_(mask)
                optimizer.step()
        optimizer.zero_grad()
        return float(total) / steps

    def gradients(self, client: L.LightningModule, samples: Samples) -> list[Tensor]:
        """Of the cross entropy over all samples in evaluation mode, of each trainable parameter, masked or not."""
        parameters = [parameter for parameter in client.parameters() if parameter.requires_grad]
        client.eval()
        found = [torch.zeros_like(parameter) for parameter in parameters]
        for indices in torch.arange(len(samples)).split(self.batch_size):
            inputs, targets = read_batch(samples, indices, found[0].device)
            loss = F.cross_entropy(class_logits(client, inputs, "Lockdown"), targets, reduction="sum")
            for total, part in zip(found, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                if part is not None:
                    total += part
        return found

    # ---- the server --------------------------------------------------------------------------------------------------

    def forward(self, shard: UpdateShard) -> Tensor:
        d, first = shard.num_coordinates, shard.start
        if len(self.consensus) == d:
            held = shard.map(lambda values: (values != 0).sum(0, dtype=torch.int32), torch.int32)
            stays = torch.zeros(d, dtype=torch.int64, device=held.device)
            stays[first : first + len(held)] = (held >= self.theta * shard.num_clients)[: max(0, d - first)].long()
            self.consensus = shard.count(stays) > 0
        return super().forward(shard)

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.mean(shard.shares)  # buffers are nobody's to hold

    @torch.no_grad()
    def after_step(self, module: L.LightningModule, round_number: int) -> None:
        if round_number + 1 >= self.rounds:
            self.prune(module)

    def prune(self, module: L.LightningModule) -> None:
        """Set what the consensus does not hold to 0."""
        layout = parameter_layout(module)
        layout.load(module, torch.where(self.consensus, layout.flatten(module), 0.0))

    def predict(self, module: L.LightningModule, batch: Any, generator: torch.Generator) -> Tensor:
        dense = Snapshot(module)
        self.prune(module)
        try:
            return super().predict(module, batch, generator)
        finally:
            dense.restore(module)
