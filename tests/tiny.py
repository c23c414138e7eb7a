"""A federation small enough to run whole in a test, with everything in it that could depend on ranks."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from fl_lightning import CohortSampler, FederatedDataModule, Federation, LocalTraining
from fl_lightning.aggregators import AndMask, FedAvg, Invariant, Median, TrimmedMean
from fl_lightning.attacks import Attack, Attacker, Broadcast, Knowledge, ValueTrigger
from fl_lightning.data import Dirichlet, Samples, TensorSamples
from fl_lightning.updates import UpdateShard

FEATURES, CLASSES, CLIENTS = 6, 3, 9

RULES: dict[str, Any] = {
    "fedavg": FedAvg,
    "median": Median,
    "trimmed": TrimmedMean,
    "and_mask": AndMask,
    "invariant": lambda: Invariant(tau=0.2, alpha=0.25),
}


def vector(module: nn.Module) -> Tensor:
    """(d,), all parameters."""
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


class TinyClient(L.LightningModule):
    """BatchNorm, dropout, a scheduler and logging in some hundred parameters."""

    def __init__(self, *, norm: bool = True, dropout: float = 0.2, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 37),
            nn.BatchNorm1d(37) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(37, CLASSES),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class Scale(Attack):
    """Malicious updates times a factor; what a rule does with NaN, infinity and large values."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def corrupt(self, shard: UpdateShard, knowledge: Knowledge) -> None:
        for bucket in shard.buckets:
            bucket[shard.malicious] *= self.factor


class Shrink(Attack):
    """Keeps a malicious client near the global model, as projections do."""

    def constrain(self, module: nn.Module, broadcast: Broadcast, step: int, steps: int) -> None:
        parameters = list(module.parameters())
        for parameter, old in zip(parameters, broadcast.weights.split([p.numel() for p in parameters]), strict=True):
            parameter.data.lerp_(old.view_as(parameter), 0.5)


class Relabel(Attack):
    """All of a malicious client's samples get one class."""

    target_label = 0

    def poison(self, dataset: Samples, attacker: Attacker) -> Samples:
        return dataset.relabel(torch.zeros_like(dataset.targets))


def tiny_tensors(n: int, seed: int = 0) -> TensorSamples:
    draws = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, FEATURES, generator=draws)
    return TensorSamples(inputs, inputs[:, :CLASSES].argmax(1))


def tiny_data(partition: Any = None, n: int = 207, **kwargs: Any) -> FederatedDataModule:
    return FederatedDataModule.from_datasets(
        tiny_tensors(n),
        tiny_tensors(50, seed=1),
        partition=partition or Dirichlet(num_clients=CLIENTS, alpha=1.0, min_samples=5),
        num_classes=CLASSES,
        eval_batch_size=8,
        **kwargs,
    )


def tiny_federation(**kwargs: Any) -> Federation:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "client": TinyClient(),
        "aggregator": Invariant(tau=0.2, alpha=0.25),
        "attacks": [ValueTrigger(column=5, value=4.0, source_label=1, target_label=0, poison_fraction=0.5)],
        "cohort": CohortSampler(clients_per_round=7, malicious_fraction=0.3),
        "local": LocalTraining(epochs=1.5, batch_size=8),
    }
    return Federation(**{**defaults, **kwargs})


def tiny_trainer(rounds: int = 3, *, callbacks: Any = (), devices: int = 1, **kwargs: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": devices,
        "strategy": "federated",
        "max_epochs": rounds,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(**{**defaults, **kwargs}, callbacks=list(callbacks))


def fit(
    federation: Federation, data: FederatedDataModule | None = None, rounds: int = 3, ckpt_path: Any = None, **kwargs: Any
) -> L.Trainer:
    trainer = tiny_trainer(rounds, **kwargs)
    trainer.fit(federation, tiny_data() if data is None else data, ckpt_path=ckpt_path)
    return trainer
