"""Kinds of modules that a user may hand over as a client: each trains rightly or is refused before training."""

import math
from typing import Any

import lightning as L
import pytest
import torch
from checked_clients import Client
from lightning.pytorch.utilities.compile import from_compiled
from tiny import CLASSES, FEATURES, TinyClient, fit, tiny_federation, tiny_tensors
from torch import Tensor, nn

from fl_lightning import Federation, LocalTraining
from fl_lightning.aggregators import FedAvg
from fl_lightning.data import TensorSamples
from fl_lightning.errors import ConfigurationError
from fl_lightning.training.client_checks import check_client, check_kind


def check(client: L.LightningModule, sizes: list[int] | None = None, samples: Any = None, **local: Any) -> None:
    check_client(client, torch.tensor(sizes or [5]), LocalTraining(**local), samples)


# ---- what is no module, or no LightningModule ----------------------------------------------------------------------------


class Forgetful(Client):
    def __init__(self) -> None:
        pass


COMPILED: Any = torch.compile(Client())


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (TinyClient, r"is the class TinyClient; give a module that was made of it: TinyClient\(...\)"),
        (nn.Linear(2, 2), "is the plain torch module Linear, which says neither what its loss is"),
        (torch.jit.script(nn.Linear(2, 2)), "is the scripted torch module RecursiveScriptModule"),
        (torch.compile(Client()), "is a Client that was compiled by torch.compile; give the module itself"),
        (from_compiled(COMPILED), "is a Client that was compiled by torch.compile; give the module itself"),
        (nn.DataParallel(Client()), "is a Client that was wrapped for training on several devices"),
        (Forgetful(), r"the constructor of the client Forgetful does not call super\(\).__init__\(\)"),
        (lambda: Client(), "of type function, which says"),
        (None, "model.client is None of type NoneType"),
        ("Net", "model.client is 'Net' of type str"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_lightning_module_is_refused(client, message):
    for refuse in (lambda: check_kind(client), lambda: Federation(client, FedAvg())):
        with pytest.raises(ConfigurationError, match=message) as refused:
            refuse()
        assert "\n" not in str(refused.value)


# ---- modules that cannot be trained --------------------------------------------------------------------------------------


class NoStep(L.LightningModule):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class NoOptimizer(L.LightningModule):
    def training_step(self, batch: Any) -> None:
        return


class Several(Client):
    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Tensor:  # pyrefly: ignore[bad-override]
        return super().training_step(batch, batch_idx)


class ByName(Client):
    def training_step(self, batch: Any, *, batch_idx: int) -> Tensor:  # pyrefly: ignore[bad-override]
        return super().training_step(batch, batch_idx)


class Iterates(Client):
    def training_step(self, dataloader_iter: Any) -> Tensor:  # pyrefly: ignore[bad-override]
        return super().training_step(*next(dataloader_iter))


class KeepsItsOptimizer(Client):
    def __init__(self) -> None:
        super().__init__()
        self.sgd = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def configure_optimizers(self) -> Any:
        return self.sgd


class Stepless(torch.optim.Optimizer):
    def __init__(self, client: Client) -> None:
        super().__init__(client.parameters(), {})


class Manual(Client):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def with_values(value: float) -> nn.Linear:
    layer = nn.Linear(FEATURES, CLASSES)
    nn.init.constant_(layer.bias, value)
    return layer


def sgd_of_a_copy(client: Client) -> torch.optim.Optimizer:
    return torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (NoStep(), "NoStep has no training_step; a client trains by its own"),
        (NoOptimizer(), "NoOptimizer has no configure_optimizers; a client trains by its own"),
        (Several(), r"takes \(batch, batch_idx, optimizer_idx\); local training gives it \(batch, batch_idx\)"),
        (ByName(), r"takes \(batch, \*, batch_idx\); local training gives it \(batch, batch_idx\) by their place"),
        (Iterates(), r"takes \(dataloader_iter\)"),
        (Manual(), "asks for manual optimization"),
        (Client(nn.LazyLinear(CLASSES)), "the parameter net.weight of the client Client gets its shape with the first batch"),
        (Client(nn.Sequential(nn.LazyBatchNorm1d())), "net.0.weight of the client Client gets its shape with the first batch"),
        (Client(nn.Linear(6, 3, device="meta")), "net.weight of the client Client lies on the meta device"),
        (Client(nn.Linear(6, 3).half()), "parameter net.weight of the client Client has dtype torch.float16"),
        (Client(nn.Linear(6, 3).bfloat16()), "has dtype torch.bfloat16, but global weights are kept and aggregated in float32"),
        (Client(nn.Linear(6, 3, dtype=torch.complex64)), "has dtype torch.complex64"),
        (Client(with_values(math.nan)), "parameter net.bias of the client Client is not finite before any training"),
        (Client(with_values(math.inf)), "parameter net.bias of the client Client is not finite before any training"),
        (Client(nn.SyncBatchNorm(6)), "has a SyncBatchNorm, which would mix clients"),
        (Client(configure=sgd_of_a_copy), "holds 2 of 2 tensors that are not the module's parameters"),
        (Client(configure=lambda c: torch.optim.SGD([torch.zeros(1)], lr=1.0)), "holds 1 of 1 tensors that are not"),
        (Client(configure=Stepless), "the optimizer Stepless of the client Client has no step"),
        (KeepsItsOptimizer(), "returns one and the same optimizer every time"),
        (Client(configure=lambda c: torch.optim.SGD(c.parameters(), lr=-1.0)), "configure_optimizers of .* failed: Invalid"),
        (
            Client(configure=lambda c: torch.optim.SGD(c.parameters(), lr=math.inf)),
            "SGD of the client Client has lr = inf, with",
        ),
        (Client(configure=lambda c: torch.optim.Adam(c.parameters(), betas=(0.9, 0.9), eps=math.nan)), "failed|has eps = nan"),
        (Client(configure=lambda c: torch.optim.SGD([])), "configure_optimizers of .* failed: optimizer got an empty"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_modules_that_cannot_be_trained_are_refused(client, message):
    with pytest.raises(ConfigurationError, match=message) as refused:
        check(client)
    assert "\n" not in str(refused.value)


def test_an_optimizer_of_frozen_parameters_is_refused():
    client = Client(nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 3)), lambda c: torch.optim.SGD(c.net[0].parameters(), lr=0.1))
    client.net[0].requires_grad_(False)
    with pytest.raises(ConfigurationError, match="holds none of its trainable parameters"):
        check(client)


def embedding(**arguments: Any) -> nn.Module:
    return nn.Sequential(nn.Embedding(10, 4, sparse=True, **arguments), nn.Flatten())


def test_an_optimizer_that_changes_weights_is_refused():
    def configure(client: Client) -> torch.optim.Optimizer:
        nn.init.normal_(client.net.weight)
        return torch.optim.SGD(client.parameters(), lr=0.1)

    with pytest.raises(ConfigurationError, match=r"configure_optimizers of the client Client changes parameter net\.weight"):
        check(Client(configure=configure))


@pytest.mark.parametrize(
    ("configure", "local", "message"),
    [
        (None, {"gradient_clip_norm": 1.0}, "has sparse gradients, of net.0, which cannot be clipped; leave out sparse=True"),
        (lambda c: torch.optim.Adam(c.parameters()), {}, "the optimizer Adam of .* cannot take the sparse gradients of net.0"),
        (lambda c: torch.optim.SGD(c.parameters(), 0.1, weight_decay=0.1), {}, "optimizer SGD of .* cannot take the sparse"),
        (None, {}, None),
        (lambda c: torch.optim.SGD(c.parameters(), 0.1, momentum=0.9), {}, None),
        (lambda c: torch.optim.SparseAdam(c.parameters()), {}, None),
    ],
)
def test_sparse_gradients(configure, local, message):
    client = Client(embedding(), configure)
    before = [p.detach().clone() for p in client.parameters()]
    if message is None:
        check(client, **local)
    else:
        with pytest.raises(ConfigurationError, match=message):
            check(client, **local)
    assert all(torch.equal(a, b) for a, b in zip(before, client.parameters(), strict=True))
    assert all(p.grad is None for p in client.parameters())


# ---- BatchNorm on a batch of one -----------------------------------------------------------------------------------------


def pictures(n: int) -> TensorSamples:
    return TensorSamples(torch.randn(n, 1, 4, 4), torch.zeros(n))


ROWS = Client(nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, CLASSES)))
PICTURES = Client(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, CLASSES)))
POOLED = Client(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(1, CLASSES)))


@pytest.mark.parametrize(
    ("client", "samples", "sizes", "batch_size", "message"),
    [
        (ROWS, tiny_tensors(9), [5, 7], 1, r"model.local.batch_size is 1, and BatchNorm \(net.0\) cannot train on a single"),
        (ROWS, tiny_tensors(9), [5, 1], 4, "client 1 holds 1 sample, and BatchNorm cannot train on a single one"),
        (ROWS, None, [5, 1], 4, "client 1 holds 1 sample"),
        (ROWS, tiny_tensors(9), [5, 5], 4, None),  # the fifth joins the batch before it
        (PICTURES, pictures(9), [5, 1], 1, None),  # has 16 values per channel
        (POOLED, pictures(9), [5, 7], 1, "cannot train on a single sample"),
        (Client(), tiny_tensors(9), [1], 1, None),
    ],
)
def test_batch_norm_on_a_batch_of_one(client, samples, sizes, batch_size, message):
    if message is None:
        return check(client, sizes, samples, batch_size=batch_size)
    with pytest.raises(ConfigurationError, match=message):
        check(client, sizes, samples, batch_size=batch_size)
    return None


def test_a_batch_of_one_is_refused_before_training():
    with pytest.raises(ConfigurationError, match="batch_size is 1, and BatchNorm"):
        fit(tiny_federation(local=LocalTraining(batch_size=1)))


def test_a_compiled_federation_is_refused():
    compiled: Any = torch.compile(tiny_federation())
    with pytest.raises(ConfigurationError, match=r"the federation was compiled by torch\.compile"):
        fit(compiled)


def test_sync_batchnorm_of_the_trainer_is_refused():
    with pytest.raises(ConfigurationError, match=r"Trainer\(sync_batchnorm=True\) would mix"):
        fit(tiny_federation(), sync_batchnorm=True)


# ---- modules that change while they train --------------------------------------------------------------------------------


class Freezes(Client):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.net.bias.requires_grad_(False)
        return super().training_step(batch, batch_idx)


class Grows(Client):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(()))
        return self.scale * super().training_step(batch, batch_idx)


class MakesLayersWithTheOptimizer(Client):
    def configure_optimizers(self) -> Any:
        self.head = nn.Linear(2, 2)
        return super().configure_optimizers()


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (Freezes, "requires_grad of net.bias becomes False"),
        (Grows, "its parameter scale is new, or of another shape"),
        (MakesLayersWithTheOptimizer, "its parameter head.weight is new, or of another shape"),
    ],
)
def test_a_client_that_changes_what_it_is_made_of_is_refused(client, message):
    with pytest.raises(ConfigurationError, match=f"changes what the client .* is made of: {message}"):
        fit(tiny_federation(client=client()))


def test_what_the_optimizer_freezes_stays_frozen():
    def configure(client: Client) -> torch.optim.Optimizer:
        client.net.bias.requires_grad_(False)
        return torch.optim.SGD([p for p in client.parameters() if p.requires_grad], lr=0.1)

    client = Client(configure=configure)
    weight, bias = client.net.weight.detach().clone(), client.net.bias.detach().clone()
    fit(tiny_federation(client=client))
    assert torch.equal(client.net.bias, bias)
    assert not torch.equal(client.net.weight, weight)
