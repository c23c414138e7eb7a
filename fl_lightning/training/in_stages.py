"""A malicious client's local training in the stages that an attack asks for."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import closing

import torch

from fl_lightning.attacks.base import Attacker
from fl_lightning.data.base import Samples
from fl_lightning.training.executor import LocalExecutor
from fl_lightning.training.following import Following


def train_in_stages(
    executor: LocalExecutor,
    samples: Samples,
    draws: torch.Generator,
    following: Following,
    clean: Samples,
    attacker: Attacker,
) -> dict[str, float]:
    """Train a malicious client, each stage from where the last one ended; `executor` has its weights then.

    Args:
        executor: of malicious clients.
        samples: what it trains on, as attacks have poisoned them.
        draws: order of the samples and augmentation, of all stages.
        following: what attacks make of it.
        clean: the client's own data.
        attacker: who it is.

    Returns:
        What it logged, averaged over the steps of all stages.
    """
    after_step = following.after_step if following.constraining else None
    sums, counts = defaultdict[str, float](float), Counter[str]()
    with closing(following.stages(clean, attacker)) as stages:
        for stage in stages:
            logged = executor.train(samples, lambda: draws, after_step, follower=following, stage=stage)
            for name, value in logged.items():
                sums[name] += value * following.steps
                counts[name] += following.steps
    return {name: total / counts[name] for name, total in sums.items() if counts[name]}
