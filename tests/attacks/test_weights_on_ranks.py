"""Attacks that work on weights, alone and in company: the same bits on any number of ranks, and after a resume on another."""

import shutil
from typing import Any

import torch
from ranks import on_ranks
from tiny import CLIENTS, fit, tiny_federation
from worlds import images

from fl_lightning import CohortSampler, FederatedDataModule, Federation, LocalTraining
from fl_lightning.aggregators import FedAvg, MultiKrum
from fl_lightning.attacks import (
    F3BA,
    PGD,
    Adaptive,
    Attack,
    BackdoorCriticalLayers,
    Collude,
    ConstrainAndScale,
    PixelTrigger,
    ThreeDFed,
)
from fl_lightning.callbacks import LastCheckpoint
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.data import IID
from fl_lightning.data.cifar10 import normalize
from fl_lightning.data.crop_and_flip import crop_and_flip
from fl_lightning.models import CNN


def flips() -> F3BA:
    return F3BA(row=1, column=1, height=2, width=2, target_label=0, conv_rate=0.2, fc_rate=0.05, fc_every=2)


def layers(**settings: Any) -> BackdoorCriticalLayers:
    return BackdoorCriticalLayers(passes=2, **settings)


def pixels() -> PixelTrigger:
    return PixelTrigger(height=2, width=2, poison_fraction=0.5, per_batch=True)


def cases() -> dict[str, list[Attack]]:
    near = ConstrainAndScale(alpha=0.8, distance="cosine", gamma=2.0)
    return {
        "flips near, in one name": [flips(), Collude(), PGD(eps=1.0), near],
        "layers, adapted": [
            pixels(),
            PGD(eps=0.5),
            near,
            Collude(mode="mean"),
            layers(like="mean", rule=MultiKrum()),
            Adaptive(others="zero"),
        ],
        "3DFed": [pixels(), PGD(eps=2.0), ThreeDFed(indicator_scale=100.0, decoys=1)],
    }


def everything() -> list[Attack]:
    return [flips(), layers(every=2), ThreeDFed(indicator_scale=100.0)]


def federation_of(attacks: list[Attack]) -> tuple[Federation, FederatedDataModule]:
    """Three blocks of coordinates, in rounds of six of which two attack."""
    torch.manual_seed(0)
    client = CNN(image_size=8, channels=(8,), hidden=16, num_classes=4, optimizer=lambda p: torch.optim.SGD(p, lr=0.02))
    cohort = CohortSampler(clients_per_round=6, malicious_fraction=0.34)
    local = LocalTraining(epochs=1, batch_size=8)
    made = tiny_federation(client=client, aggregator=FedAvg(), attacks=attacks, cohort=cohort, local=local, bucket_bytes=1)
    train, test = images(150, augment=crop_and_flip, prepare=normalize), images(20, prepare=normalize)
    return made, FederatedDataModule.from_datasets(train, test, partition=IID(num_clients=CLIENTS), num_classes=4)


def digests(world: int) -> dict[str, str]:
    found = {}
    for name, attacks in cases().items():
        federation, data = federation_of(attacks)
        fit(federation, data, rounds=2, devices=world, limit_val_batches=0)
        found[name] = weights_sha256(federation.client)
    return found


def test_the_same_bits_on_any_number_of_ranks():
    alone = digests(1)
    assert len(set(alone.values())) == len(alone)
    for world in (2, 3):
        for rank, found in enumerate(on_ranks(world, digests, world)):
            assert found == alone, f"rank {rank} of {world}"


def part(folder: str, rounds: int, world: int, resume: bool, forget: bool = False) -> str:
    """All three on top of each other, with what they remember from round to round."""
    attacks = everything()
    for attack in attacks if forget else ():
        attack.load_state_dict = lambda state: None  # type: ignore[method-assign]
    federation, data = federation_of(attacks)
    fit(
        federation,
        data,
        rounds=rounds,
        devices=world,
        limit_val_batches=0,
        callbacks=[LastCheckpoint()],
        enable_checkpointing=True,
        default_root_dir=folder,
        ckpt_path="last" if resume else None,
    )
    return weights_sha256(federation.client)


def test_resumed_on_another_number_of_ranks_with_all_that_they_remember(tmp_path):
    whole = part(str(tmp_path / "whole"), 5, 1, False)
    folder = tmp_path / "in two parts"
    on_ranks(2, part, str(folder), 3, 2, False)
    shutil.copytree(folder, tmp_path / "forgetting")
    assert set(on_ranks(3, part, str(folder), 5, 3, True)) == {whole}
    assert part(str(tmp_path / "forgetting"), 5, 1, True, forget=True) != whole
