"""What the package's files and settings were called before, as settings and programs of earlier versions may name them."""

import importlib
from pkgutil import resolve_name
from typing import Any

from fl_lightning.errors import ConfigurationError

MOVED = {
    "branched_training": "training.branched_training",
    "client_logs": "training.client_logs",
    "copying": "updates.copying",
    "cores": "machine.cores",
    "executors": "training.executor",
    "flat_state": "training.flat_state",
    "footprint": "machine.footprint",
    "fresh_memory": "machine.fresh_memory",
    "heap": "machine.heap",
    "local_training": "training.local_training",
    "prediction": "training.prediction",
    "recorded_sgd": "training.recorded_sgd",
    "recorded_steps": "training.recorded_steps",
    "recordings": "training.recordings",
    "resources": "server.resources",
    "sharded_state": "checkpoints.sharded_state",
    "show_attack": "attacks.show_attack",
    "srun": "machine.srun",
    "stacked_training": "training.stacked_training",
    "strategy": "machine.strategy",
    "traced_graphs": "modules.traced_graphs",
    "training_step": "training.training_step",
    "withheld": "training.withheld",
}
"""Of files in `fl_lightning/`: where they are now."""

PUBLIC = ("FederatedStrategy", "LocalTraining")
"""Classes of these files that the package itself gives, under a name that will stay."""


def new_name(path: str) -> str | None:
    """The name of now for a dotted path of version 0.1; None where it is the same, or is none of the package's.

    >>> new_name("fl_lightning.strategy.FederatedStrategy"), new_name("fl_lightning.executors")
    ('fl_lightning.FederatedStrategy', 'fl_lightning.training.executor')
    """
    package, _, rest = path.partition(".")
    module, _, name = rest.partition(".")
    if package != "fl_lightning" or module not in MOVED:
        return None
    if name in PUBLIC:
        return f"{package}.{name}"
    return ".".join(filter(None, (package, MOVED[module], name)))


def without_every(layer: dict[str, Any]) -> dict[str, Any]:
    """A layer of settings without `model.cohort.every`, where it says nothing.

    Earlier versions wrote it into every run's `config.yaml`, though it was for participation `fixed_frequency` alone.

    Raises:
        ConfigurationError: it says something, and is to be called by its name of now.
    """
    model = layer.get("model")
    cohort = model.get("cohort") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(cohort, dict) or "every" not in cohort:
        return layer
    if cohort["every"] != 10 or cohort.get("participation", "fixed_frequency") == "fixed_frequency":
        raise ConfigurationError(EVERY.format(cohort["every"]))
    return {**layer, "model": {**model, "cohort": {key: value for key, value in cohort.items() if key != "every"}}}


EVERY = "model.cohort.every is model.cohort.interval now, for every kind of participation; write interval: {} in its place"


def is_there(path: str) -> bool:
    """Whether a dotted path leads to something.

    >>> is_there("fl_lightning.LocalTraining"), is_there("fl_lightning.machine.strategy.Strategist")
    (True, False)
    """
    try:
        resolve_name(path)
    except (ImportError, AttributeError):
        return False
    return True


def public_in(module: str) -> list[str]:
    """The classes that a file of the package defines for others.

    >>> public_in("fl_lightning.machine.strategy")
    ['FederatedStrategy']
    """
    found = vars(importlib.import_module(module)).items()
    return sorted(n for n, of in found if isinstance(of, type) and of.__module__ == module and n[0] != "_")
