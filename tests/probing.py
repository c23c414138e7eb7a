"""Rules that use every hook on models, and what they do written out by hand."""

import copy
from typing import Any

import torch
from tiny import CLASSES, TinyClient
from torch import Tensor, nn

from fl_lightning.aggregators import Aggregator
from fl_lightning.cohort import CohortSampler
from fl_lightning.data.module import FederatedDataModule
from fl_lightning.data.probe import Noise
from fl_lightning.modules.predicting import predicted_classes
from fl_lightning.seeding import derive_seed, generator

SIGMA, RHO, COPIES, P = 0.01, 4.0, 3, 20


class Probing(Aggregator):
    """Weighs clients by how near to the global model's their outputs on noise are; noises, clips and votes as CRFL does."""

    probe = Noise(samples=P)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bytes, bytes]] = []

    def examine(self, module, probe, generator):
        outputs = torch.cat([module(inputs).softmax(1) for inputs, _ in probe])
        assert len(outputs) == len(probe) == P
        return outputs.mean(0)

    def forward(self, shard):
        self.seen.append((shard.examined.numpy().tobytes(), shard.examined_broadcast.numpy().tobytes()))
        return shard.combine(nearness(shard.examined, shard.examined_broadcast))

    @torch.no_grad()
    def before_broadcast(self, module, round_number):
        for parameter in module.parameters():
            parameter += SIGMA * torch.randn(parameter.shape)

    @torch.no_grad()
    def after_step(self, module, round_number):
        clip(module)

    def predict(self, module, batch, generator):
        weights = [parameter.clone() for parameter in module.parameters()]
        votes = torch.zeros(len(batch[1]), CLASSES)
        for _ in range(COPIES):
            for parameter, weight in zip(module.parameters(), weights, strict=True):
                parameter.copy_(weight + SIGMA * torch.randn(weight.shape, generator=generator))
            classes = predicted_classes(super().predict(module, batch, generator))
            votes += nn.functional.one_hot(classes, CLASSES)
        for parameter, weight in zip(module.parameters(), weights, strict=True):
            parameter.copy_(weight)
        return votes / COPIES

    def accepts(self, probabilities):
        return probabilities.amax(1) > 0.5


def nearness(examined: Tensor, of_broadcast: Tensor) -> Tensor:
    """(N, q) and (q,) to (N,), which add up to 1."""
    near = 1 / (0.1 + (examined - of_broadcast).norm(dim=1))
    return near / near.sum()


def clip(module: nn.Module) -> None:
    """Shorten all parameters together to RHO."""
    length = torch.cat([parameter.flatten() for parameter in module.parameters()]).norm()
    for parameter in module.parameters():
        parameter *= min(1.0, RHO / float(length))


@torch.no_grad()
def by_hand(
    model: TinyClient, data: FederatedDataModule, cohort: CohortSampler, rounds: int, factor: float
) -> tuple[TinyClient, list[tuple[Tensor, Tensor]], float]:
    """A federation by `Probing` in which a client takes one step on all its data, and malicious updates grow by a factor.

    Returns:
        The model in the end, what was examined in each round, and the share of test samples that enough copies get right.
    """
    model, seen = copy.deepcopy(model), []
    for t in range(rounds):
        torch.manual_seed(derive_seed(0, "before_broadcast", t))
        for parameter in model.parameters():
            parameter += SIGMA * torch.randn(parameter.shape)
        chosen = cohort.draw(0, t, data.sizes)
        submitted = []
        for client, malicious in zip(chosen.clients.tolist(), chosen.malicious.tolist(), strict=True):
            local = trained(model, data, client)
            if malicious:
                for own, old in zip(local.parameters(), model.parameters(), strict=True):
                    own.copy_(old - factor * (old - own))
            submitted.append(local)
        of_models = [outputs_on_noise(local, t) for local in (*submitted, model)]
        examined, of_broadcast = torch.stack(of_models[:-1]), of_models[-1]
        seen.append((examined, of_broadcast))
        weights, shares = nearness(examined, of_broadcast), chosen.weights / chosen.weights.sum()
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                of_clients = torch.stack([local.state_dict()[name] for local in submitted])
                is_buffer = name in dict(model.named_buffers())
                tensor.copy_(torch.einsum("n,n...->...", shares if is_buffer else weights, of_clients))
        clip(model)
    return model, seen, share_right(model, data, rounds)


def trained(model: TinyClient, data: FederatedDataModule, client: int) -> TinyClient:
    """The model after a client's step."""
    local: Any = copy.deepcopy(model).train()
    inputs, targets = data.train.batch(data.clients[client])
    with torch.enable_grad():
        optimizers, _ = local.configure_optimizers()
        nn.functional.cross_entropy(local(inputs), targets).backward()
    optimizers[0].step()
    return local


def outputs_on_noise(model: TinyClient, t: int) -> Tensor:
    """(C,) mean probabilities, of noise in batches of 8."""
    noise = [torch.rand(min(8, P - 8 * i), 6, generator=generator(0, "probe", t, i)) for i in range(-(-P // 8))]
    return torch.cat([copy.deepcopy(model).eval()(inputs).softmax(1) for inputs in noise]).mean(0)


def share_right(model: TinyClient, data: FederatedDataModule, rounds: int) -> float:
    """Over the clean test set in batches of 8."""
    right, test = 0, data.evaluation["clean"]
    for number, indices in enumerate(torch.arange(len(test)).split(8)):
        inputs, targets = test.batch(indices)
        draws, votes = generator(0, "predict", rounds, 0, number), torch.zeros(len(indices), CLASSES)
        for _ in range(COPIES):
            noised = copy.deepcopy(model).eval()
            for parameter in noised.parameters():
                parameter += SIGMA * torch.randn(parameter.shape, generator=draws)
            votes += nn.functional.one_hot(noised(inputs).argmax(1), CLASSES)
        right += int(((votes.argmax(1) == targets) & (votes.amax(1) / COPIES > 0.5)).sum())
    return right / len(test)
