"""Federated learning under backdoor attack, simulated on any number of devices with Lightning."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl_lightning.aggregators import Aggregator
    from fl_lightning.attacks import Attack
    from fl_lightning.callbacks import (
        AccuracyByGroup,
        AggregationDiagnostics,
        BackdoorLifespan,
        BackdoorMetrics,
        ClientRecord,
        DetectionMetrics,
        FlipRates,
        LastCheckpoint,
        RoundProgressBar,
        RunRecord,
    )
    from fl_lightning.cohort import CohortSampler
    from fl_lightning.data import FederatedDataModule
    from fl_lightning.errors import ConfigurationError
    from fl_lightning.federation import Federation
    from fl_lightning.machine.strategy import FederatedStrategy
    from fl_lightning.simulation import Simulation
    from fl_lightning.training.local_training import LocalTraining
    from fl_lightning.training.recipe import AttackersTraining

__version__ = "0.2.0"  # the one place; pyproject.toml reads it from here

__all__ = [
    "AccuracyByGroup",
    "AggregationDiagnostics",
    "Aggregator",
    "Attack",
    "AttackersTraining",
    "BackdoorLifespan",
    "BackdoorMetrics",
    "ClientRecord",
    "CohortSampler",
    "ConfigurationError",
    "DetectionMetrics",
    "FederatedDataModule",
    "FederatedStrategy",
    "Federation",
    "FlipRates",
    "LastCheckpoint",
    "LocalTraining",
    "RoundProgressBar",
    "RunRecord",
    "Simulation",
]

# Public names are imported when asked for: torch and Lightning take seconds, and what watches over a run needs neither.
_HOMES = {
    "Aggregator": "aggregators",
    "Attack": "attacks",
    "AttackersTraining": "training.recipe",
    "CohortSampler": "cohort",
    "ConfigurationError": "errors",
    "FederatedDataModule": "data",
    "FederatedStrategy": "machine.strategy",
    "Federation": "federation",
    "LocalTraining": "training.local_training",
    "Simulation": "simulation",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'callbacks')}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


class _OldNames:
    """Asked last, about modules that nobody else has found: files of the package go by their names of version 0.1 too."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> Any:
        if not name.startswith(f"{__name__}."):
            return None
        return importlib.import_module(f"{__name__}.options.old_imports").old_spec(name)


sys.meta_path.append(_OldNames)
