"""The number of ranks is not part of the experiment: one tiny federation under attack on 1 and 3 ranks."""

from collections.abc import Callable
from typing import Any

import torch
from ranks import on_ranks
from tiny import CLIENTS, tiny_federation, tiny_trainer

from fl_lightning import BackdoorMetrics, FederatedDataModule, Federation
from fl_lightning.attacks import Attack
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.data import IID, TensorSamples
from fl_lightning.data.cifar10 import normalize
from fl_lightning.data.crop_and_flip import crop_and_flip
from fl_lightning.models import CNN

Made = tuple[Federation, FederatedDataModule]


def digest_and_metrics(world: int, make: Callable[[], Made], rounds: int) -> tuple[str, dict[str, float]]:
    """What a rank of `world` ends with."""
    federation, data = make()
    trainer = tiny_trainer(rounds, devices=world, callbacks=[BackdoorMetrics()])
    trainer.fit(federation, data)
    return weights_sha256(federation.client), {name: value.item() for name, value in trainer.callback_metrics.items()}


def same_on_any_number_of_ranks(make: Callable[[], Made], rounds: int = 2) -> dict[str, float]:
    """Assert equal weights, bit for bit, and equal metrics on one rank and on three, whose shares are uneven.

    Args:
        make: defined at the top of a test module; makes federation and data anew on every rank, alike.
        rounds: how many to run.

    Returns:
        The metrics, by name.
    """
    (alone,) = on_ranks(1, digest_and_metrics, 1, make, rounds)
    for rank, found in enumerate(on_ranks(3, digest_and_metrics, 3, make, rounds)):
        assert found == alone, f"rank {rank} of 3"
    return alone[1]


def images(n: int = 40, shape: tuple[int, ...] = (3, 8, 8), **transforms: Any) -> TensorSamples:
    """Noise in bytes from 0 to 254, so that no pixel is white; classes 0 to 3 in turn."""
    pixels = torch.randint(0, 255, (n, *shape), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    return TensorSamples(pixels, torch.arange(n) % 4, **transforms)


def image_federation(*attacks: Attack) -> Made:
    """Augmented and normalised colour images, so that a trigger has to find its place between the two."""
    federation = tiny_federation(client=CNN(image_size=8, channels=(4,), hidden=8, num_classes=4), attacks=attacks)
    train, test = images(150, augment=crop_and_flip, prepare=normalize), images(50, prepare=normalize)
    return federation, FederatedDataModule.from_datasets(
        train, test, partition=IID(num_clients=CLIENTS), num_classes=4, eval_batch_size=8
    )
