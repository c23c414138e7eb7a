"""Lightning callbacks: what a federation measures, records and shows.

They may import the federation and everything below it, and are imported by the configuration, sweeps and analyses. Read
`backdoor_metrics.py` first: Acc and ASR. What reads records of runs needs `digests`, `history`, `lifespan` and `detections`,
which import neither torch nor Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl_lightning.callbacks.accuracy_by_group import AccuracyByGroup
    from fl_lightning.callbacks.aggregation_diagnostics import AggregationDiagnostics
    from fl_lightning.callbacks.backdoor_lifespan import BackdoorLifespan
    from fl_lightning.callbacks.backdoor_metrics import BackdoorMetrics
    from fl_lightning.callbacks.client_record import ClientRecord
    from fl_lightning.callbacks.detection_metrics import DetectionMetrics
    from fl_lightning.callbacks.flip_rates import FlipRates
    from fl_lightning.callbacks.last_checkpoint import LastCheckpoint
    from fl_lightning.callbacks.round_progress import RoundProgressBar
    from fl_lightning.callbacks.run_record import RunRecord

__all__ = [
    "AccuracyByGroup",
    "AggregationDiagnostics",
    "BackdoorLifespan",
    "BackdoorMetrics",
    "ClientRecord",
    "DetectionMetrics",
    "FlipRates",
    "LastCheckpoint",
    "RoundProgressBar",
    "RunRecord",
]

# Classes are imported when asked for: a report needs none of them.
_HOMES = {
    "AccuracyByGroup": "accuracy_by_group",
    "AggregationDiagnostics": "aggregation_diagnostics",
    "BackdoorLifespan": "backdoor_lifespan",
    "BackdoorMetrics": "backdoor_metrics",
    "ClientRecord": "client_record",
    "DetectionMetrics": "detection_metrics",
    "FlipRates": "flip_rates",
    "LastCheckpoint": "last_checkpoint",
    "RoundProgressBar": "round_progress",
    "RunRecord": "run_record",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
