"""A run in Python by one call, with what the command line gives without being asked.

`Simulation` puts Trainer, Federation, data and callbacks together as `fl-lightning fit` does: record, checkpoints and loggers
in one folder, seeded initial weights, no remarks of Lightning's on the screen.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.nn.parameter import is_lazy

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.attacks.base import Attack
from fl_lightning.callbacks import LastCheckpoint
from fl_lightning.callbacks.quiet import quietly
from fl_lightning.callbacks.standard import TRAINER_DEFAULTS, standard_callbacks, standard_loggers
from fl_lightning.checked import shown
from fl_lightning.cohort import CohortSampler
from fl_lightning.configuration import integer_seed, plainly
from fl_lightning.data.module import FederatedDataModule, Task
from fl_lightning.errors import ConfigurationError, folded, in_one_line, nearest
from fl_lightning.federation import Federation
from fl_lightning.files.run_files import read_json, read_lines
from fl_lightning.machine.launched import as_launched
from fl_lightning.options.described import describe, optimizer_of, path
from fl_lightning.options.trainer_options import check_twice

T = TypeVar("T")

OWN = {"max_epochs": "rounds", "default_root_dir": "folder"}
"""Arguments of the Trainer that a simulation calls otherwise."""


@dataclass(frozen=True)
class Result:
    """What came out of a simulation.

    Attributes:
        folder: the run's folder, in which all of it lies.
        record: `run.json`; see `RunRecord` for its keys.
        history: a row per evaluation: `round`, `acc`, `asr` where an attack stamps test samples, and what else was measured.
        client: the trained module, in evaluation mode; `Federation.load(folder)` gives it later.
    """

    folder: Path
    record: dict[str, Any]
    history: pd.DataFrame
    client: Any

    @property
    def acc(self) -> float | None:
        """Accuracy on the clean test set, in [0, 1], at the last evaluation."""
        return self.record.get("acc")

    @property
    def asr(self) -> float | None:
        """Attack success rate, in [0, 1], at the last evaluation; None where no attack stamps test samples."""
        return self.record.get("asr")

    def __repr__(self) -> str:
        return f"Result(acc={self.acc}, asr={self.asr}, rounds={self.record.get('rounds')}, folder={str(self.folder)!r})"


class Simulation:
    """A federation and its run.

    What is given stays as it is: module, rule and attacks are copied and data dealt out anew for each run, so that the same
    ones may stand in several simulations.

    Args:
        client: makes the client module, a class or any function without arguments, and is called under the seed, so that
            initial weights follow from it; or a module, whose weights are taken as they are, which `config.yaml` then says.
        aggregator: the server's rule.
        data: a task, or any two data sets by `FederatedDataModule.from_datasets`; dealt out by the simulation's seed.
        folder: where the run leaves everything.
        attacks: what malicious clients do, in this order.
        cohort: how clients are sampled.
        rounds: how many there are.
        seed: the experiment's, in [0, 2**32).
        devices: as the Trainer takes it; `auto` is what a launcher started, else all GPUs or one process on a CPU.
        callbacks: further ones, or those to have in place of a standard one of the same class.
        options: further arguments of `Federation` (`local`, `server_optimizer`, ...) or of Lightning's Trainer (`accelerator`,
            `check_val_every_n_epoch`, `logger`, ...).

    Raises:
        ConfigurationError: an argument that cannot work. Some are found by `run` alone, before training.

    Example:
        >>> simulation = Simulation(MLP, TrimmedMean(alpha=0.25), Phishing(IID(num_clients=50)), folder="runs/mine", rounds=20)
        >>> result = simulation.run()
        >>> result.acc, result.history["acc"].max(), result.client(torch.zeros(1, 45))
    """

    def __init__(
        self,
        client: L.LightningModule | Callable[[], L.LightningModule],
        aggregator: Aggregator,
        data: FederatedDataModule,
        *,
        folder: str | os.PathLike[str],
        attacks: Sequence[Attack] = (),
        cohort: CohortSampler = CohortSampler(),  # noqa: B008  frozen
        rounds: int = TRAINER_DEFAULTS["max_epochs"],
        seed: int = 0,
        devices: Any = "auto",
        callbacks: Sequence[L.Callback] = (),
        **options: Any,
    ) -> None:
        check_client(client)
        if not isinstance(data, FederatedDataModule):
            raise ConfigurationError(
                f"data must be a FederatedDataModule, got {type(data).__name__}; any two data sets make one by "
                "FederatedDataModule.from_datasets(train, test, partition=...)"
            )
        for name, value, kind, example in (
            ("aggregator", [aggregator], Aggregator, "a rule, such as TrimmedMean(alpha=0.25)"),
            ("attacks", attacks, Attack, "a list of attacks, such as [PixelTrigger(target_label=7)], [] for none"),
            ("cohort", [cohort], CohortSampler, "a CohortSampler, such as CohortSampler(clients_per_round=10)"),
            ("callbacks", callbacks, L.Callback, "a list of callbacks, such as [FlipRates()], [] for none"),
            ("folder", [folder], (str, os.PathLike), 'a path, such as "runs/mine"'),
        ):
            if not isinstance(value, Sequence):
                raise ConfigurationError(f"{name} must be {example}, got {shown(value)}")
            for wrong in (part for part in value if not isinstance(part, kind)):
                remedy = f"; give an object made of it: {wrong.__name__}(...)" if isinstance(wrong, type) else ""
                raise ConfigurationError(f"{name} must be {example}, got {shown(wrong)}{remedy}")
        self.rounds, self.seed = whole("rounds", rounds), integer_seed(whole("seed", seed, least=0))
        if data.seed not in (0, self.seed):
            raise ConfigurationError(
                f"data have seed {data.seed}, the simulation {seed}; give the seed to the simulation alone"
            )
        self.client, self.aggregator, self.attacks, self.cohort = client, aggregator, list(attacks), cohort
        self.data, self.folder, self.devices, self.callbacks = data, Path(folder), devices, list(callbacks)
        self.federation_options, self.trainer_options = sort_options(options)
        self._norms: set[str] = set()  # of the first weights, each time that they were made

    def run(self, *, resume: bool = False) -> Result:
        """Train, in this process or in those that a launcher starts, and read what came of it.

        Args:
            resume: go on from the folder's last checkpoint, where there is one, with the same bits as without a break.
        """
        with quietly():
            federation, trainer = plainly(self.federation), plainly(self.trainer)
            data = dealt_by(self.data, self.seed)
            plainly(lambda: trainer.fit(federation, data, ckpt_path="last" if resume else None))
            trainer.strategy.barrier("the record is written")
        history = pd.DataFrame(read_lines(self.folder / "metrics.jsonl"))
        return Result(self.folder, read_json(self.folder / "run.json"), history, federation.client.eval())

    def federation(self) -> Federation:
        """The federation as a run begins with it."""
        if isinstance(self.client, nn.Module):
            return self._federation(copied("client", self.client))
        federation = made_under(self.seed, lambda: self._federation(made_by(self.client)))
        self._norms.add(norm_of(federation.client))
        return federation

    def _federation(self, client: Any) -> Federation:
        return Federation(
            client,
            copied("aggregator", self.aggregator),
            copied("attacks", self.attacks),
            self.cohort,
            seed=self.seed,
            **self.federation_options,
        )

    def trainer(self) -> L.Trainer:
        """The Trainer that a run has, with its callbacks and loggers."""
        options = {**TRAINER_DEFAULTS, "devices": self.devices, **self.trainer_options}
        options["callbacks"] = [*standard_callbacks(self.config(), options, self.callbacks), *self.callbacks]
        if options.get("barebones"):
            options["log_every_n_steps"] = 0
        else:
            kept = any(type(callback) is LastCheckpoint for callback in self.callbacks)
            if options.get("enable_checkpointing") is not False and not kept:
                options["callbacks"].append(LastCheckpoint())
            if options.get("logger") in (None, True):
                options["logger"] = standard_loggers(self.folder)
        options |= as_launched(options["devices"], options.get("plugins"))
        check_twice(options["callbacks"])
        try:
            return L.Trainer(**options | {"max_epochs": self.rounds, "default_root_dir": self.folder})
        except (MisconfigurationException, TypeError, ValueError) as error:
            raise ConfigurationError(f"trainer: {folded(error)}") from error

    def config(self) -> dict[str, Any]:
        """What the run's record says of its settings, in the form of a configuration; see `describe`."""
        given = isinstance(self.client, nn.Module)
        client = describe(self.client)
        if not given and ("function" in client or not isinstance(self.client, (type, functools.partial))):
            client = client if "function" in client else {"function": path(self.client), "of": client}
            client |= {"makes": self._made()}  # its name says little
        options = {name: describe(value) for name, value in self.federation_options.items()}
        for name in {"server_optimizer", "attackers_optimizer"} & options.keys():
            options[name] = optimizer_of(self.federation_options[name])
        model = {"client": client if "function" in client else {"init_args": {}, **client}, "seed": self.seed, **options}
        model |= {"aggregator": describe(self.aggregator), "attacks": describe(self.attacks), "cohort": describe(self.cohort)}
        data = describe(dealt_by(self.data, self.seed))
        given_task = next((held for held in vars(self.data).values() if isinstance(held, Task)), None)
        if "task" in data["init_args"]:  # data sets that the caller has, not a class that loads them
            data["init_args"]["task"] = describe(given_task)
        trainer = {"max_epochs": self.rounds, "default_root_dir": str(self.folder), "devices": describe(self.devices)}
        trainer |= {"callbacks": describe(self.callbacks)} | describe(self.trainer_options)
        config = {"seed_everything": self.seed, "trainer": trainer, "model": model, "data": data}
        of_module = given and self.federation_options.get("start_from") is None
        return config | {"initial_weights": "of a module that was made before, not by the seed"} if of_module else config

    def _made(self) -> dict[str, Any]:
        """What the module says of itself that a function makes, and of its first weights if they are the same every time."""
        client = made_under(self.seed, lambda: made_by(self.client))
        self._norms.add(norm_of(client))
        size = {"parameters": sum(parameter.numel() for parameter in client.parameters() if not is_lazy(parameter))}
        return describe(client) | size | ({"norm": self._norms.copy().pop()} if len(self._norms) == 1 else {})


def check_client(client: Any) -> None:
    """Raise `ConfigurationError` unless it is a module, or can be called for one."""
    if isinstance(client, nn.Module) and hasattr(client, "training_step"):
        return
    if not callable(client) or isinstance(client, nn.Module):
        raise ConfigurationError(
            f"client must be a LightningModule, or a class or function that makes one, got {shown(client)}"
        )
    name = path(client.func) if isinstance(client, functools.partial) else path(client)
    try:
        inspect.signature(client).bind()
    except (TypeError, ValueError) as error:
        if isinstance(error, ValueError) and not isinstance(client, functools.partial):
            return  # made in C, it does not tell
        raise ConfigurationError(
            f"client is called without arguments, which {name} cannot be ({error}); give functools.partial({name}, ...) with "
            "its arguments"
        ) from error


def whole(name: str, value: Any, least: int = 1) -> int:
    """The value as an int, after seeing that it is a whole number, NumPy's included."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigurationError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def sort_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of the federation and those of the Trainer."""
    own = {*inspect.signature(Simulation).parameters, "self", "options"}
    of_federation = {*inspect.signature(Federation).parameters} - own
    of_trainer = {*inspect.signature(L.Trainer).parameters} - own - OWN.keys()
    for name in options:
        if name in OWN:
            raise ConfigurationError(f"a simulation has {OWN[name]} in place of {name}={options[name]!r}")
        if name not in of_federation | of_trainer:
            known = of_federation | of_trainer | own - {"self", "options"}
            raise ConfigurationError(f"Simulation has no argument {name}; {nearest(name, known)}")
    return tuple({n: v for n, v in options.items() if n in names} for names in (of_federation, of_trainer))  # pyrefly: ignore


def copied(name: str, value: T) -> T:
    """A copy that a run may change."""
    try:
        return copy.deepcopy(value)
    except Exception as error:  # whatever a user's object may hold
        remedy = "give a function that makes it" if name == "client" else "leave out what cannot be copied"
        raise ConfigurationError(f"{name} cannot be copied for the run ({type(error).__name__}: {error}); {remedy}") from error


def made_by(make: Callable[[], Any]) -> Any:
    """The client module that a class or function makes."""
    called = path(make.func) if isinstance(make, functools.partial) else path(make)
    try:
        client = make()
    except ConfigurationError:
        raise
    except Exception as error:  # whatever a user's code may raise
        raise ConfigurationError(
            f"client: {called} makes no module, as it raises {in_one_line(error)}; give a function that returns one"
        ) from error
    if not isinstance(client, nn.Module) or not hasattr(client, "training_step"):
        raise ConfigurationError(
            f"client: {called} returns {shown(client)}, which is no LightningModule; have it return one, as lambda: Net() does"
        )
    return client


def norm_of(client: nn.Module) -> str:
    """The Euclidean norm of all parameters to four digits, which are the same on all machines."""
    squares = sum(float(p.detach().double().square().sum()) for p in client.parameters() if not is_lazy(p) and not p.is_meta)
    return f"{math.sqrt(squares):.4g}"


def made_under(seed: int, make: Callable[[], T]) -> T:
    """What a function makes with random numbers of this seed; the caller's own stay as they are."""
    with isolate_rng():
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  modules may draw from it
        torch.manual_seed(seed)
        return make()


def dealt_by(data: FederatedDataModule, seed: int) -> FederatedDataModule:
    """The same data, yet to be loaded and dealt out by this seed."""
    fresh = copy.copy(data)
    fresh.seed, fresh.trainer, fresh.task, fresh.root_samples, fresh.clients, fresh.evaluation = seed, None, None, None, [], {}
    return fresh
