"""A federation at the weights that are to be analysed, in one process: after a short training, or from a checkpoint."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from fl_lightning.attacks.base import Attacker, Broadcast
from fl_lightning.callbacks import RunRecord
from fl_lightning.cohort import Cohort
from fl_lightning.configuration import build, resolve
from fl_lightning.data.base import Samples
from fl_lightning.data.joined import join
from fl_lightning.errors import ConfigurationError
from fl_lightning.federation import Federation
from fl_lightning.files.yaml_files import write_yaml
from fl_lightning.modules.outputs import is_one_logit
from fl_lightning.modules.predicting import predict
from fl_lightning.training.local_round import LocalRound
from fl_lightning.updates.layout import Snapshot

T = TypeVar("T")

BATCH = 1000
"""Samples that are looked at together."""


def settings(config: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The whole configuration of a `fit`, as plain data.

    Args:
        config: configuration files, later ones on top of earlier ones.
        overrides: further options of `fit`, such as `["--data.init_args.path", "cifar10"]`.

    Raises:
        ConfigurationError: without a file, or if the configuration has a mistake.
    """
    if not config:
        raise ConfigurationError("this analysis needs --config FILE: a configuration, as `fit` takes it")
    return quietly(resolve, ["fit", *(word for file in config for word in ("--config", file)), *overrides])


def quietly(function: Callable[[Sequence[str]], T], args: Sequence[str]) -> T:
    """The function's result, without Lightning's remark that arguments are not taken from the command line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        return function(args)


@dataclass(frozen=True)
class WarmUp:
    """How the weights under analysis come about.

    Attributes:
        rounds: of training, at least 0; 0 analyses the initial weights.
        ckpt_path: a checkpoint whose weights are taken in place of any training; also one of other settings, if seed, model
            and number of attacks are the same.
        attacked: whether malicious clients attack in these rounds; else they train like anyone else, and attack afterwards.
    """

    rounds: int = 10
    ckpt_path: str | None = None
    attacked: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ConfigurationError(f"rounds must be at least 0, got {self.rounds}")
        if self.ckpt_path is not None and not os.path.isfile(self.ckpt_path):
            raise ConfigurationError(f"ckpt_path: there is no file {self.ckpt_path}; give the last.ckpt of a run")

    def prepare(self, config: dict[str, Any], folder: Path) -> World:
        """Train, or load, in `folder`, where the run's files are left.

        Args:
            config: as `settings` gives it; it is changed to what is done here.
            folder: `trainer.default_root_dir`.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigurationError("analyses run in one process; start them without torchrun or srun")
        config["trainer"] |= {
            "max_epochs": max(1, self.rounds),
            "default_root_dir": str(folder),
            "devices": 1,
            "num_nodes": 1,
            "logger": False,
            "enable_progress_bar": False,
            "check_val_every_n_epoch": max(1, self.rounds),
        }
        # What pays in long runs only, or would stay behind on a device: compiled rules, recorded steps.
        config["model"]["compile_rules"] = "never"
        config["model"]["local"]["executor"] = "sequential"
        cohort = config["model"]["cohort"]
        if not self.attacked and cohort["participation"] != "single_shot":
            later = max(0, self.rounds - cohort["start_round"])  # the whole of the attack comes after these rounds
            cohort["start_round"] += later
            cohort["end_round"] = None if cohort["end_round"] is None else cohort["end_round"] + later
        try:
            folder.mkdir(parents=True, exist_ok=True)
            written = folder / "settings.yaml"
            written.write_text(write_yaml(config))
        except OSError as error:
            raise ConfigurationError(f"output: cannot write into {folder}: {error}; give another folder") from error
        built = quietly(build, ["fit", "--config", str(written)])
        if self.rounds and self.ckpt_path is None:
            built.trainer.fit(built.model, built.datamodule)
        else:
            # Of the checkpoint only the weights are wanted, so it may be one of other settings.
            callbacks = built.trainer.callbacks  # pyrefly: ignore[missing-attribute]
            callbacks[:] = [callback for callback in callbacks if not isinstance(callback, RunRecord)]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")  # that RunRecord is missing
                built.trainer.validate(built.model, built.datamodule, ckpt_path=self.ckpt_path, verbose=False)
        built.model.to(built.model.exchange.device)  # the Trainer has put the model back on the CPU
        figures = {name: float(value) for name, value in built.trainer.callback_metrics.items() if name.startswith("val/")}
        return World(built.model, max(self.rounds, built.model.cohort.start_round), figures)


@dataclass(frozen=True)
class World:
    """A federation that has been set up, at the weights in question.

    Letters: n clients or samples, d trainable parameters.

    Attributes:
        federation: holds weights, data and clients.
        round_number: t, which keys what clients draw.
        figures: `val/acc`, `val/asr` and the like at these weights.
    """

    federation: Federation
    round_number: int
    figures: dict[str, float]

    @property
    def malicious(self) -> list[int]:
        """The numbers of all malicious clients, ascending."""
        data = self.federation.data
        found = self.federation.cohort.malicious_clients(self.federation.seed, len(data.clients)).tolist()
        if not found:
            raise ConfigurationError(
                "this analysis looks at malicious clients, but there are none; set model.cohort.malicious_fraction above 0"
            )
        return found

    @property
    def benign(self) -> list[int]:
        """The numbers of all benign clients, ascending."""
        return list(self.federation.clients.benign)

    @property
    def weights(self) -> Tensor:
        """(d,) float32, a copy of the parameters."""
        return self.federation.parameters_layout.flatten(self.federation.client)

    def _cohort(self, clients: Sequence[int], malicious: bool) -> Cohort:
        numbers = torch.tensor(clients, dtype=torch.int64)
        everyone = self.malicious if malicious else []
        attackers = torch.tensor([everyone.index(client) if malicious else -1 for client in clients])
        sizes = self.federation.data.sizes[numbers].float()
        return Cohort(numbers, torch.full((len(clients),), malicious), attackers, sizes)

    def updates(self, clients: Sequence[int], *, malicious: bool = False) -> Tensor:
        """(n, d) float32, what clients would report in the next round, old minus new weights; the weights stay as they are.

        Args:
            clients: their numbers.
            malicious: whether they train on poisoned data. Attacks that rewrite updates afterwards are not applied.
        """
        federation, cohort = self.federation, self._cohort(clients, malicious)
        federation.exchange.compiled = False
        broadcast = Broadcast(self.weights, federation.last_step, self.round_number)
        trained = federation.clients.train(self.round_number, cohort, broadcast)
        shard = federation.exchange.to_coordinates(trained.updates, trained.owner, trained.weights, trained.malicious)
        return shard.split(len(cohort))[0].values[:, : federation.exchange.num_coordinates].clone()

    def samples(self, clients: Sequence[int], *, poisoned: bool = False) -> Samples:
        """The training data of some clients together: benign ones' with what attacks leak to them, or malicious ones'."""
        clients_ = self.federation.clients
        if not poisoned:
            return join([clients_.benign_samples(client) for client in clients])
        everyone = self.malicious
        data, seed = self.federation.data, self.federation.seed
        attackers = [Attacker(client, seed, data.train, everyone.index(client), self.round_number) for client in clients]
        with isolate_rng():
            round_ = LocalRound(self._cohort(clients, True), attackers, data, clients_.attacks)
            round_.plan(self.federation.client)
            return join(list(round_.poisoned.values()))

    @property
    def stamped(self) -> Samples:
        """The test samples that carry the backdoor, under the label that attackers want."""
        evaluation = self.federation.data.evaluation
        if "stamped" not in evaluation:
            raise ConfigurationError(
                "this analysis needs samples with a backdoor, but model.attacks stamps none; use an attack that does, such as "
                "EdgeCase or ValueTrigger"
            )
        return evaluation["stamped"]

    def loss(self, samples: Samples, weights: Tensor | None = None) -> float:
        """The mean cross entropy over samples, in evaluation mode, so with BatchNorm's statistics as they are.

        Args:
            samples: n, at least one.
            weights: (d,) float32 in place of the global ones, which are put back afterwards.
        """
        module, layout = self.federation.client, self.federation.parameters_layout
        snapshot = Snapshot(module)
        if weights is not None:
            layout.load(module, weights)
        module.eval()
        with torch.no_grad():
            total = sum(float(cross_entropy(module, samples, part)) for part in torch.arange(len(samples)).split(BATCH))
        snapshot.restore(module)
        return total / len(samples)

    def gradient(self, samples: Samples) -> Tensor:
        """(d,) float32, the full-batch gradient of `loss` at the global weights."""
        module = self.federation.client
        parameters = [p for p in module.parameters() if p.requires_grad]
        module.eval()
        total = torch.zeros_like(self.weights)
        with torch.enable_grad():
            for part in torch.arange(len(samples)).split(BATCH):
                grads = torch.autograd.grad(cross_entropy(module, samples, part), parameters, allow_unused=True)
                flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
                total += torch.cat([g.reshape(-1) for g in flat])
        return total / len(samples)


def cross_entropy(module: Any, samples: Samples, indices: Tensor) -> Tensor:
    """The sum of the cross entropies of some samples ((b,) int64 positions)."""
    if not samples.outcome.one_class:
        raise ConfigurationError(f"the loss is that of one class per sample, but the task asks for {samples.outcome.words}")
    device = next(module.parameters()).device
    logits = predict(module, move_data_to_device(samples.batch(indices), device)).float()
    targets = samples.targets[indices.to(samples.targets.device)].to(device)
    if is_one_logit(logits):
        return F.binary_cross_entropy_with_logits(logits.reshape(-1), targets.float(), reduction="sum")
    return F.cross_entropy(logits, targets, reduction="sum")
