"""Rounds with attackers who train otherwise, written out in plain torch: the oracle for recipes and losses of attackers."""

from collections.abc import Callable
from typing import Any

import torch
from tiny import CLIENTS, TinyClient, tiny_data, tiny_federation
from torch import Tensor, nn

from fl_lightning import CohortSampler, FederatedDataModule, Federation, LocalTraining
from fl_lightning.aggregators import FedAvg
from fl_lightning.data import IID
from fl_lightning.seeding import generator

BATCH, SEED = 8, 0
COHORT = CohortSampler(clients_per_round=5, malicious_fraction=0.4, participation="random_pool")

Optimizer = Callable[[Any], torch.optim.Optimizer]
Loss = Callable[[Tensor, list[Tensor], list[Tensor]], Tensor]
"""Of what cross entropy gives, the parameters, and those that the round started from."""


def plain_client() -> TinyClient:
    torch.manual_seed(0)
    return TinyClient(norm=False, dropout=0.0)


def equal_data() -> FederatedDataModule:
    """Nine clients of 24 samples, so three batches each."""
    return tiny_data(IID(num_clients=CLIENTS), n=24 * CLIENTS)


def federation_of(attacks: Any, **settings: Any) -> Federation:
    local = LocalTraining(epochs=1, batch_size=BATCH, executor="sequential")
    parts: dict[str, Any] = {"client": plain_client(), "aggregator": FedAvg(), "cohort": COHORT, "local": local}
    return tiny_federation(attacks=attacks, **{**parts, **settings})


def by_hand(
    rounds: int,
    *,
    epochs: int = 1,
    optimizer: Optimizer | None = None,
    decay: float = 0.5,
    loss: Loss = lambda own, parameters, start: own,
    gamma: float | None = 1.0,
    ends: Callable[[list[float]], bool] = lambda losses: False,
) -> Tensor:
    """The global parameters (d,) after some rounds of FedAvg in which malicious clients call all of their samples zeros.

    Args:
        rounds: how many.
        epochs: a malicious client's passes over its data; a benign one takes one.
        optimizer: of malicious clients; benign ones have the module's.
        decay: what a malicious client's learning rate is multiplied by after every pass.
        loss: what it goes down.
        gamma: what its update is multiplied by; None for 1 / (f * its weight), of f with equal weights N / f.
        ends: told the losses of a pass's batches, whether its round is over.
    """
    data, net = equal_data(), plain_client().net
    data.setup("fit")
    weights = [p.detach().clone() for p in net.parameters()]
    for t in range(rounds):
        cohort = COHORT.draw(SEED, t, data.sizes)
        total, attackers = [torch.zeros_like(w) for w in weights], int(cohort.malicious.sum())
        for client, malicious in zip(cohort.clients.tolist(), cohort.malicious.tolist(), strict=True):
            with torch.no_grad():
                for p, w in zip(net.parameters(), weights, strict=True):
                    p.copy_(w)
            inputs, targets = data.train.batch(data.clients[client])
            targets = torch.zeros_like(targets) if malicious else targets
            make = optimizer if malicious and optimizer else lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9)
            steps, draws = make(list(net.parameters())), generator(SEED, "batches", t, client)
            for _ in range(epochs if malicious else 1):
                losses = []
                for rows in torch.randperm(len(targets), generator=draws).split(BATCH):
                    own = nn.functional.cross_entropy(net(inputs[rows]), targets[rows])
                    losses.append(own.item())
                    steps.zero_grad()
                    (loss(own, [*net.parameters()], weights) if malicious else own).backward()
                    steps.step()
                for group in steps.param_groups:
                    group["lr"] *= decay
                if malicious and ends(losses):
                    break
            factor = 1.0 if not malicious else len(cohort) / attackers if gamma is None else gamma
            for sum_, p, w in zip(total, net.parameters(), weights, strict=True):
                sum_ += factor * (w - p.detach()) / len(cohort)
        weights = [w - sum_ for w, sum_ in zip(weights, total, strict=True)]
    return torch.cat([w.flatten() for w in weights])
