"""Attacks, one file each; they compose as a list.

An attack may import `updates`, `data`, `models`, `modules` and what lies below, never a rule: an adaptive attacker is handed
the rule's mask. Read `base.py` first: its hooks say where an attacker may reach in.
"""

from fl_lightning.attacks.a3fl import A3FL
from fl_lightning.attacks.adaptive import Adaptive
from fl_lightning.attacks.alie import ALIE
from fl_lightning.attacks.anticipate import Anticipate
from fl_lightning.attacks.base import Attack, Attacker, Broadcast, Knowledge, Stage
from fl_lightning.attacks.blended import Blended
from fl_lightning.attacks.chameleon import Chameleon
from fl_lightning.attacks.collude import Collude
from fl_lightning.attacks.constrain_and_scale import ConstrainAndScale
from fl_lightning.attacks.critical_layers import BackdoorCriticalLayers
from fl_lightning.attacks.dba import DBA
from fl_lightning.attacks.edge_case import EdgeCase
from fl_lightning.attacks.f3ba import F3BA
from fl_lightning.attacks.gaussian_noise import GaussianNoise
from fl_lightning.attacks.iba import IBA
from fl_lightning.attacks.ipm import IPM
from fl_lightning.attacks.label_flip import LabelFlip
from fl_lightning.attacks.masked_replacement import MaskedReplacement
from fl_lightning.attacks.mimicry import Mimicry
from fl_lightning.attacks.min_max import MinMax, MinSum
from fl_lightning.attacks.model_replacement import ModelReplacement
from fl_lightning.attacks.neurotoxin import Neurotoxin
from fl_lightning.attacks.pgd import PGD
from fl_lightning.attacks.pixel_trigger import PixelTrigger
from fl_lightning.attacks.sign_flip import SignFlip
from fl_lightning.attacks.sinusoidal import Sinusoidal
from fl_lightning.attacks.tabular_dba import TabularDBA
from fl_lightning.attacks.three_d_fed import ThreeDFed
from fl_lightning.attacks.value_trigger import ValueTrigger
from fl_lightning.attacks.word_trigger import WordTrigger

__all__ = [
    "A3FL",
    "ALIE",
    "DBA",
    "F3BA",
    "IBA",
    "IPM",
    "PGD",
    "Adaptive",
    "Anticipate",
    "Attack",
    "Attacker",
    "BackdoorCriticalLayers",
    "Blended",
    "Broadcast",
    "Chameleon",
    "Collude",
    "ConstrainAndScale",
    "EdgeCase",
    "GaussianNoise",
    "Knowledge",
    "LabelFlip",
    "MaskedReplacement",
    "Mimicry",
    "MinMax",
    "MinSum",
    "ModelReplacement",
    "Neurotoxin",
    "PixelTrigger",
    "SignFlip",
    "Sinusoidal",
    "Stage",
    "TabularDBA",
    "ThreeDFed",
    "ValueTrigger",
    "WordTrigger",
]
