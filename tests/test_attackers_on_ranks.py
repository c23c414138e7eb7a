"""Attackers who train otherwise do so with the same bits on any number of ranks, and after a resume on another number."""

from typing import Any

import torch
from ranks import on_ranks
from tiny import fit, tiny_data, tiny_federation

from fl_lightning import AttackersTraining, CohortSampler, Federation, LocalTraining
from fl_lightning.attacks import PGD, Anticipate, Attack, Chameleon, Collude, ConstrainAndScale, ValueTrigger
from fl_lightning.callbacks import LastCheckpoint
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.data import IID


def trigger(**settings: Any) -> ValueTrigger:
    return ValueTrigger(column=5, value=4.0, source_label=1, target_label=0, poison_fraction=0.5, **settings)


def optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def scheduler(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3], 0.1)


RECIPE = {"attackers": AttackersTraining(epochs=4), "attackers_optimizer": optimizer, "attackers_scheduler": scheduler}
CASES: dict[str, tuple[list[Attack], dict[str, Any]]] = {
    "recipe, recorded": ([trigger()], {**RECIPE, "local": LocalTraining(batch_size=8, executor="graph")}),
    "two terms, batch by batch": ([trigger(per_batch=True), ConstrainAndScale(stop_loss=0.6)], RECIPE),
    "two stages": ([trigger(), Chameleon(encoder_epochs=2, classifier_epochs=1), PGD(every=2), ConstrainAndScale()], {}),
    "three rounds ahead": ([trigger(), Anticipate(rounds=3, steps=2), Collude(mode="mean")], RECIPE),
    "in company": ([trigger(per_batch=True), Collude(), PGD(every=2), ConstrainAndScale(distance="cosine")], {}),
}


def federation_of(name: str) -> Federation:
    attacks, settings = CASES[name]
    cohort = CohortSampler(clients_per_round=6, malicious_fraction=0.34)
    return tiny_federation(
        **{"attacks": attacks, "cohort": cohort, "local": LocalTraining(batch_size=8), "bucket_bytes": 1, **settings}
    )


def digests(world: int) -> dict[str, str]:
    found = {}
    for name in CASES:
        federation = federation_of(name)
        fit(federation, tiny_data(IID(num_clients=9), n=140), rounds=2, devices=world)
        assert federation.seconds["attackers_training"] > 0  # also on ranks that trained no attacker
        found[name] = weights_sha256(federation.client)
    return found


def test_the_same_bits_on_any_number_of_ranks():
    alone = digests(1)
    assert len(set(alone.values())) == len(CASES)
    for world in (2, 3):
        for rank, found in enumerate(on_ranks(world, digests, world)):
            assert found == alone, f"rank {rank} of {world}"


RESUMED = ("two terms, batch by batch", "two stages", "three rounds ahead")


def part_of_runs(folder: str, rounds: int, world: int, resume: bool) -> list[str]:
    found = []
    for name in RESUMED:
        federation = federation_of(name)
        fit(
            federation,
            tiny_data(IID(num_clients=9), n=140),
            rounds=rounds,
            devices=world,
            callbacks=[LastCheckpoint()],
            enable_checkpointing=True,
            default_root_dir=f"{folder}/{name}",
            ckpt_path="last" if resume else None,
        )
        found.append(weights_sha256(federation.client))
    return found


def test_a_run_that_goes_on_elsewhere_ends_with_the_same_bits(tmp_path):
    whole = part_of_runs(str(tmp_path / "whole"), 3, 1, False)
    folder = str(tmp_path / "in two parts")
    on_ranks(2, part_of_runs, folder, 2, 2, False)
    assert all(found == whole for found in on_ranks(3, part_of_runs, folder, 3, 3, True))
