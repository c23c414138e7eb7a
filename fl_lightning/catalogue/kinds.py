"""The kinds of things that a configuration names: where their classes are exported, and where in YAML they go.

No thing is named here: a class is listed because its package exports it. Packages, which need torch, are imported when their
classes are asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

Node = dict[str, Any]
"""A class in a configuration: `class_path` and `init_args`."""


@dataclass(frozen=True)
class Kind:
    """One kind of class.

    Args:
        name: in the plural, as the command takes it.
        one: in the singular.
        about: what it is for.
        home: the import path of what exports the classes.
        of: the import path of the class that they all are of, which is not listed itself.
        place: from a class's node to the part of a configuration that names it; None where nothing can.
    """

    name: str
    one: str
    about: str
    home: str
    of: str
    place: Callable[[Node], Node | None]

    @property
    def package(self) -> ModuleType:
        return import_module(self.home)

    @property
    def base(self) -> type:
        return resolve_name(self.of)

    def classes(self) -> list[type]:
        """All classes of this kind that its package exports, by name."""
        exported = [getattr(self.package, name) for name in self.package.__all__]
        found = [each for each in exported if isinstance(each, type) and issubclass(each, self.base) and each is not self.base]
        return sorted(found, key=lambda cls: cls.__name__.lower())


def place_callback(node: Node) -> Node | None:
    """Callbacks that every command has by itself are refused in a list but for one; checkpoints have a key of their own."""
    from fl_lightning.callbacks.standard import UNSET  # the callback's class is imported by now

    if node["class_path"] == "LastCheckpoint":
        return {"checkpoint": node["init_args"]}
    return None if node["class_path"] in {cls.__name__ for cls in UNSET} else {"trainer": {"callbacks": [node]}}


def place_pool(node: Node) -> Node:
    """Pools belong to the edge-case attack."""
    return {"model": {"attacks": [{"class_path": "EdgeCase", "init_args": {"pool": node}}]}}


KINDS = (
    Kind(
        "rules",
        "rule",
        "how the server makes one update of the clients' (model.aggregator)",
        "fl_lightning.aggregators",
        "fl_lightning.aggregators.Aggregator",
        lambda node: {"model": {"aggregator": node}},
    ),
    Kind(
        "attacks",
        "attack",
        "what malicious clients do; several compose as a list (model.attacks)",
        "fl_lightning.attacks",
        "fl_lightning.attacks.Attack",
        lambda node: {"model": {"attacks": [node]}},
    ),
    Kind(
        "pools",
        "pool",
        "rare inputs for the attack EdgeCase (its pool)",
        "fl_lightning.data",
        "fl_lightning.data.EdgePool",
        place_pool,
    ),
    Kind(
        "tasks",
        "task",
        "data sets with what they are evaluated on (data)",
        "fl_lightning.data",
        "fl_lightning.data.FederatedDataModule",
        lambda node: {"data": node},
    ),
    Kind(
        "partitions",
        "partition",
        "how samples are dealt out to clients (data.init_args.partition)",
        "fl_lightning.data",
        "fl_lightning.data.Partition",
        lambda node: {"data": {"init_args": {"partition": node}}},
    ),
    Kind(
        "models",
        "model",
        "networks of clients; any LightningModule of yours is one (model.client)",
        "fl_lightning.models",
        "fl_lightning.models.Classifier",
        lambda node: {"model": {"client": node}},
    ),
    Kind(
        "callbacks",
        "callback",
        "what a run measures, records and shows (trainer.callbacks)",
        "fl_lightning.callbacks",
        "lightning.Callback",
        place_callback,
    ),
)
