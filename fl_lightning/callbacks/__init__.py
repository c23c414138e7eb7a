"""Lightning callbacks: what a federation measures, records and shows.

They may import the federation and everything below it, and are imported by the configuration, sweeps and analyses. Read
`backdoor_metrics.py` first: Acc and ASR.
"""

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
