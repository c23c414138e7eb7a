"""The kinds of things that a configuration names: where their classes are exported, and where in YAML they go.

No thing is named here: a class is listed because its package exports it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import lightning as L

from fl_lightning import aggregators, attacks, callbacks, data, models
from fl_lightning.aggregators import Aggregator
from fl_lightning.attacks import Attack, EdgeCase
from fl_lightning.callbacks import LastCheckpoint
from fl_lightning.data import EdgePool, FederatedDataModule, Partition
from fl_lightning.models import Classifier
from fl_lightning.trainers import STANDARD

Node = dict[str, Any]
"""A class in a configuration: `class_path` and `init_args`."""


@dataclass(frozen=True)
class Kind:
    """One kind of class.

    Args:
        name: in the plural, as the command takes it.
        one: in the singular.
        about: what it is for.
        package: what exports the classes.
        base: the class that they all are of, which is not listed itself.
        place: from a class's node to the part of a configuration that names it; None where nothing can.
    """

    name: str
    one: str
    about: str
    package: ModuleType
    base: type
    place: Callable[[Node], Node | None]

    def classes(self) -> list[type]:
        """All classes of this kind that its package exports, by name."""
        exported = [getattr(self.package, name) for name in self.package.__all__]
        found = [each for each in exported if isinstance(each, type) and issubclass(each, self.base) and each is not self.base]
        return sorted(found, key=lambda cls: cls.__name__.lower())


def place_callback(node: Node) -> Node | None:
    """Callbacks that every command has by itself are refused in a list; the one with settings has a key of its own."""
    if node["class_path"] == LastCheckpoint.__name__:
        return {"checkpoint": node["init_args"]}
    return None if node["class_path"] in {cls.__name__ for cls in STANDARD} else {"trainer": {"callbacks": [node]}}


def place_pool(node: Node) -> Node:
    """Pools belong to the edge-case attack."""
    return {"model": {"attacks": [{"class_path": EdgeCase.__name__, "init_args": {"pool": node}}]}}


KINDS = (
    Kind(
        "rules",
        "rule",
        "how the server makes one update of the clients' (model.aggregator)",
        aggregators,
        Aggregator,
        lambda node: {"model": {"aggregator": node}},
    ),
    Kind(
        "attacks",
        "attack",
        "what malicious clients do; several compose as a list (model.attacks)",
        attacks,
        Attack,
        lambda node: {"model": {"attacks": [node]}},
    ),
    Kind("pools", "pool", "rare inputs for the attack EdgeCase (its pool)", data, EdgePool, place_pool),
    Kind(
        "tasks",
        "task",
        "data sets with what they are evaluated on (data)",
        data,
        FederatedDataModule,
        lambda node: {"data": node},
    ),
    Kind(
        "partitions",
        "partition",
        "how samples are dealt out to clients (data.init_args.partition)",
        data,
        Partition,
        lambda node: {"data": {"init_args": {"partition": node}}},
    ),
    Kind(
        "models",
        "model",
        "networks of clients; any LightningModule of yours is one (model.client)",
        models,
        Classifier,
        lambda node: {"model": {"client": node}},
    ),
    Kind(
        "callbacks",
        "callback",
        "what a run measures, records and shows (trainer.callbacks)",
        callbacks,
        L.Callback,
        place_callback,
    ),
)
