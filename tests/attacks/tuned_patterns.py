"""What tests of A3FL share."""

from typing import Any

import torch
from torch import nn
from worlds import images

from fl_lightning.attacks import A3FL, Attacker
from fl_lightning.data import Samples
from fl_lightning.data.cifar10 import normalize
from fl_lightning.models import CNN

SMALL: dict[str, Any] = {
    "row": 1,
    "column": 3,
    "height": 2,
    "width": 2,
    "trigger_epochs": 3,
    "adversarial_epochs": 2,
    "adversarial_every": 2,
    "batch_size": 16,
}


def small(**settings: Any) -> A3FL:
    chosen: dict[str, Any] = {**SMALL, **settings}
    return A3FL(**chosen)


def attacker(client: int = 0, seed: int = 0, t: int = 0) -> Attacker:
    return Attacker(client=client, seed=seed, pool=images(), round_number=t)


def network(seed: int = 0) -> CNN:
    """BatchNorm's place is taken by nothing, so that a batch's samples do not depend on each other."""
    torch.manual_seed(seed)
    return CNN(image_size=8, channels=(4,), hidden=8, num_classes=4)


def everything(samples: Samples | None) -> tuple[torch.Tensor, torch.Tensor]:
    """All inputs and classes as a model is shown them in evaluation."""
    assert samples is not None
    return samples.batch(torch.arange(len(samples)))


def pattern(attack: A3FL) -> torch.Tensor:
    assert attack.pattern is not None
    return attack.pattern


def planned(attack: A3FL, module: nn.Module | None = None, data: Samples | None = None, rounds: int = 1) -> A3FL:
    data = images(prepare=normalize) if data is None else data
    for t in range(rounds):
        attack.plan(network() if module is None else module, [data], [attacker(t=t)])
    return attack
