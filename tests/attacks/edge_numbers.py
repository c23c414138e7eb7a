"""An edge-case attack on numbers, each of which tells which part of the data it is from."""

from typing import Any

import torch

from fl_lightning.attacks.base import Attacker
from fl_lightning.attacks.edge_case import EdgeCase
from fl_lightning.data import Samples, TensorSamples
from fl_lightning.data.edge_pool import EdgePool

TARGET = 9


def scale(images: torch.Tensor) -> torch.Tensor:
    return images.float()


def shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return images + int(torch.randint(1, 9, (1,), generator=generator))


class Pool(EdgePool):
    """Inputs are numbers from 1000 (training) and 2000 (test) on, so that each can be told."""

    def __init__(self, n: int = 50, labels: tuple[int, ...] = (0,), device: str = "cpu", group_size: int = 1) -> None:
        self.label = labels[0] if len(labels) == 1 else None
        self.group_size = group_size
        self.prepared = 0
        self.parts = [
            TensorSamples(
                torch.arange(first, first + count, device=device).view(count, 1),
                torch.tensor(labels, device=device).repeat(count)[:count],
                augment=shift,
                prepare=scale,
            )
            for first, count in ((1000, n), (2000, 12))
        ]

    def prepare(self) -> None:
        self.prepared += 1

    def train(self) -> TensorSamples:
        return self.parts[0]

    def test(self) -> TensorSamples:
        return self.parts[1]


def clean(first: int, n: int, augment=shift, device: str = "cpu") -> TensorSamples:
    """n samples with inputs from `first` on, of class input mod 9."""
    inputs = torch.arange(first, first + n, device=device)
    return TensorSamples(inputs.view(n, 1), inputs % 9, augment=augment, prepare=scale)


def attacker(client: int = 0, seed: int = 0, device: str = "cpu") -> Attacker:
    return Attacker(client=client, seed=seed, pool=clean(0, 300, device=device))


def attack(**settings: Any) -> EdgeCase:
    chosen: dict[str, Any] = {"pool": Pool(), "target_label": TARGET, "num_edge": 10, "num_clean": 40, **settings}
    return EdgeCase(**chosen)


def tensors(samples: Samples | None) -> TensorSamples:
    assert isinstance(samples, TensorSamples)
    return samples


def parts(poisoned: Samples) -> tuple[list[int], list[int]]:
    """Clean inputs and edge-case inputs, in order, after a check of their labels."""
    inputs, targets = tensors(poisoned).inputs.flatten(), poisoned.targets
    edge = inputs >= 1000
    assert (targets[edge] == TARGET).all()
    assert torch.equal(targets[~edge], inputs[~edge] % 9)
    return inputs[~edge].tolist(), inputs[edge].tolist()


def edge_in_round(rule: EdgeCase, t: int, client: int = 0) -> list[int]:
    who = Attacker(client=client, seed=0, pool=clean(0, 300), round_number=t)
    return parts(rule.poison(clean(500, 5), who))[1]
