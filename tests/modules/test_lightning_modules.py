"""Modules of `pytorch_lightning` are clients as those of `lightning` are."""

from typing import Any

import lightning as L
import pytest
import pytorch_lightning as pl
import torch
from tiny import CLASSES, FEATURES, fit, tiny_federation
from torch import nn

from fl_lightning.configuration import build
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.lightning_modules import ClientModule, lightning_base, lightning_parts, overrides


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


class Steps:
    """What both clients do."""

    net: Any
    hparams: Any
    log: Any
    log_dict: Any

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.forward(batch[0]), batch[1])
        self.log("loss", loss)
        self.log_dict({"lr": self.hparams["lr"]})
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=self.hparams["lr"])


class Ours(Steps, L.LightningModule):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = net()


class Theirs(Steps, pl.LightningModule):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = net()


class Predicts(Theirs):
    """Logits come from `predict_step` alone, and without a batch index."""

    def forward(self, x):
        raise NotImplementedError

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def predict_step(self, batch):
        return {"logits": self.net(batch[0]), "device": str(self.device), "epoch": self.trainer.current_epoch}


class Holds(L.LightningModule):
    """Has one of the other package in it, which does the work."""

    def __init__(self, part: type = Theirs) -> None:
        super().__init__()
        self.part = part()

    def forward(self, x):
        return self.part(x)

    def training_step(self, batch, batch_idx):
        return self.part.training_step(batch, batch_idx)

    def configure_optimizers(self):
        return self.part.configure_optimizers()


def trained(client: Any) -> tuple[list[torch.Tensor], dict[str, Any]]:
    torch.manual_seed(3)
    federation = tiny_federation(client=client())
    trainer = fit(federation, rounds=2)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("client/")}
    return [p.detach() for p in federation.parameters()], metrics


def test_both_packages_end_with_the_same_bits_and_logs():
    ours, metrics = trained(Ours)
    assert set(metrics) == {"client/loss", "client/lr"}
    for client in (Theirs, Holds, lambda: Holds(Ours)):
        theirs, others = trained(client)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert others == metrics


def test_predict_step_sees_the_trainer():
    theirs, _ = trained(Predicts)
    ours, _ = trained(Ours)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_what_is_overridden_is_found_in_either():
    for client in (Ours(), Theirs()):
        assert overrides(client, "training_step")
        assert not overrides(client, "predict_step")
        assert not overrides(client, "on_train_start")
    assert overrides(Predicts(), "predict_step")
    assert lightning_base(Theirs) is pl.LightningModule
    assert lightning_base(Ours) is L.LightningModule
    assert lightning_base(nn.Linear) is None
    assert [type(part) for part in lightning_parts(Holds().modules())] == [Holds, Theirs]


def test_a_configuration_may_name_either():
    assert isinstance(Theirs(), ClientModule)
    assert issubclass(Theirs, ClientModule)
    assert issubclass(Ours, ClientModule)
    assert not isinstance(nn.Linear(1, 1), ClientModule)
    assert not issubclass(nn.Linear, ClientModule)
    assert Ours in ClientModule.__subclasses__() or Ours in Steps.__subclasses__()


@pytest.mark.parametrize("client", ["Theirs", "Ours"])
def test_a_file_may_name_either(client):
    settings = {"client": f"{__name__}.{client}", "client.lr": "0.3", "aggregator": "FedAvg"}
    arguments = [word for name, value in settings.items() for word in (f"--model.{name}", value)]
    made = build(["fit", "--data", "Digits", "--data.partition", "IID", "--data.partition.num_clients", "5", *arguments])
    assert type(made.model.client).__name__ == client
    assert made.model.client.hparams["lr"] == 0.3


def test_a_file_may_not_name_other_classes():
    with pytest.raises(ConfigurationError, match="Linear"):
        build(
            [
                "fit",
                "--data",
                "Digits",
                "--data.partition",
                "IID",
                "--model.client",
                "torch.nn.Linear",
                "--model.aggregator",
                "FedAvg",
            ]
        )
