"""What tests of FLIP share."""

from typing import Any

import torch

from fl_lightning.aggregators import FLIP
from fl_lightning.aggregators.trigger_inversion import TriggerInversion

FAST = TriggerInversion(warmup_steps=6, new_steps=4, continued_steps=2, retry_steps=3, learning_rate=0.6, success_rate=0.3)


def quick(**kwargs: Any) -> FLIP:
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 16, "max_coverage": 1.0, "inversion": FAST}
    return FLIP(**{**settings, **kwargs})


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
