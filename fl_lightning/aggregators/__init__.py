"""Server rules, one file each.

A rule may import `updates`, `data`, `models`, `modules` and what lies below, never an attack, and knows neither clients nor
ranks. Read `base.py` first, then `invariant.py`, the paper's.
"""

from fl_lightning.aggregators.align_ins import AlignIns
from fl_lightning.aggregators.and_mask import AndMask
from fl_lightning.aggregators.backdoor_indicator import BackdoorIndicator
from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.bucketing import Bucketing
from fl_lightning.aggregators.bulyan import Bulyan
from fl_lightning.aggregators.centered_clipping import CenteredClipping
from fl_lightning.aggregators.cosine_multi_krum import CosineMultiKrum
from fl_lightning.aggregators.crfl import CRFL
from fl_lightning.aggregators.deep_sight import DeepSight
from fl_lightning.aggregators.dnc import DnC
from fl_lightning.aggregators.fedavg import FedAvg
from fl_lightning.aggregators.fl_detector import FLDetector
from fl_lightning.aggregators.fl_trust import FLTrust
from fl_lightning.aggregators.flame import FLAME
from fl_lightning.aggregators.flare import FLARE
from fl_lightning.aggregators.flip import FLIP
from fl_lightning.aggregators.fools_gold import FoolsGold
from fl_lightning.aggregators.freq_fed import FreqFed
from fl_lightning.aggregators.invariant import Invariant
from fl_lightning.aggregators.krum import Krum
from fl_lightning.aggregators.krum_trimmed_mean import KrumTrimmedMean
from fl_lightning.aggregators.lasa import LASA
from fl_lightning.aggregators.lockdown import Lockdown
from fl_lightning.aggregators.mean_variance_ratio import MeanVarianceRatio
from fl_lightning.aggregators.median import Median
from fl_lightning.aggregators.multi_krum import MultiKrum
from fl_lightning.aggregators.multi_metrics import MultiMetrics
from fl_lightning.aggregators.nearest_neighbor_mixing import NearestNeighborMixing
from fl_lightning.aggregators.norm_clipping import NormClipping
from fl_lightning.aggregators.rfa import RFA
from fl_lightning.aggregators.rflbat import RFLBAT
from fl_lightning.aggregators.rlr import RLR
from fl_lightning.aggregators.sign_guard import SignGuard
from fl_lightning.aggregators.sign_sgd import SignSGD
from fl_lightning.aggregators.sparse_fed import SparseFed
from fl_lightning.aggregators.trimmed_mean import TrimmedMean
from fl_lightning.aggregators.weak_dp import WeakDP

__all__ = [
    "CRFL",
    "FLAME",
    "FLARE",
    "FLIP",
    "LASA",
    "RFA",
    "RFLBAT",
    "RLR",
    "Aggregator",
    "AlignIns",
    "AndMask",
    "BackdoorIndicator",
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "CosineMultiKrum",
    "DeepSight",
    "DnC",
    "FLDetector",
    "FLTrust",
    "FedAvg",
    "FoolsGold",
    "FreqFed",
    "Invariant",
    "Krum",
    "KrumTrimmedMean",
    "Lockdown",
    "MeanVarianceRatio",
    "Median",
    "MultiKrum",
    "MultiMetrics",
    "NearestNeighborMixing",
    "NormClipping",
    "SignGuard",
    "SignSGD",
    "SparseFed",
    "TrimmedMean",
    "WeakDP",
]
