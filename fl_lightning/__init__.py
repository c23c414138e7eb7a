"""Federated learning under backdoor attack, simulated on any number of devices with Lightning."""

from fl_lightning.aggregators import Aggregator
from fl_lightning.attacks import Attack
from fl_lightning.callbacks import (
    AggregationDiagnostics,
    BackdoorMetrics,
    FlipRates,
    LastCheckpoint,
    RoundProgressBar,
    RunRecord,
)
from fl_lightning.cohort import CohortSampler
from fl_lightning.data import FederatedDataModule
from fl_lightning.errors import ConfigurationError
from fl_lightning.federation import Federation
from fl_lightning.local_training import LocalTraining
from fl_lightning.strategy import FederatedStrategy

__all__ = [
    "AggregationDiagnostics",
    "Aggregator",
    "Attack",
    "BackdoorMetrics",
    "CohortSampler",
    "ConfigurationError",
    "FederatedDataModule",
    "FederatedStrategy",
    "Federation",
    "FlipRates",
    "LastCheckpoint",
    "LocalTraining",
    "RoundProgressBar",
    "RunRecord",
]
