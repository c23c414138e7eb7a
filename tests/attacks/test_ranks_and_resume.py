"""Every attack that looks at updates or steps: the same bits on any number of ranks, and after a resume."""

from typing import Any

import pytest
import torch
from ranks import on_ranks
from rows import Watch, bits, drawn
from tiny import CLASSES, FEATURES, TinyClient, fit, tiny_data, tiny_federation
from torch import Tensor, nn

from fl_lightning import CohortSampler, LocalTraining
from fl_lightning.aggregators import Invariant
from fl_lightning.attacks import (
    ALIE,
    IPM,
    PGD,
    Adaptive,
    Attack,
    Collude,
    GaussianNoise,
    Knowledge,
    MaskedReplacement,
    Mimicry,
    MinMax,
    MinSum,
    ModelReplacement,
    Neurotoxin,
    SignFlip,
    ValueTrigger,
)
from fl_lightning.callbacks import LastCheckpoint
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.data import IID
from fl_lightning.updates import Exchange, UpdateShard

WORLDS = (1, 2, 3)
LEVELS: list[Any] = ["previous_round", "oracle", "shadow", "colluders"]
DIRECTIONS: list[Any] = ["unit", "sign", "std"]

# ---- what happens to updates -----------------------------------------------------------------------------------------

N, F, D = 9, 3, 5000
MALICIOUS = torch.tensor([False, True, False, False, True, False, True, False, False])


def rewriting() -> dict[str, Attack]:
    """Every attack on updates, in every mode."""
    sources: list[Any] = ["benign", "colluders"]
    crafted: dict[str, Attack] = {}
    for source in sources:
        crafted |= {f"IPM, {source}": IPM(knowledge=source), f"ALIE, {source}": ALIE(z=1.2, knowledge=source)}
        crafted[f"ALIE, {source}, biased"] = ALIE(z=1.2, knowledge=source, biased=True)
        for way in DIRECTIONS:
            crafted[f"MinMax, {way}, {source}"] = MinMax(direction=way, knowledge=source)
            crafted[f"MinSum, {way}, {source}"] = MinSum(direction=way, knowledge=source)
        crafted[f"MinSum, largest, {source}"] = MinSum(bound="largest", knowledge=source)
    adaptive = {
        f"Adaptive, {level}, {others}": Adaptive(knowledge=level, others=others)
        for level in LEVELS
        for others in ("keep", "zero", "benign")
    }
    return {
        **crafted,
        **adaptive,
        "SignFlip": SignFlip(scale=3.0),
        "GaussianNoise": GaussianNoise(),
        "GaussianNoise, added": GaussianNoise(add=True),
        "ModelReplacement": ModelReplacement(),
        "ModelReplacement, 7": ModelReplacement(gamma=7.0),
        "Collude, first": Collude(mode="first"),
        "Collude, mean": Collude(mode="mean"),
        "Mimicry, own": Mimicry(kept=1500),
        "Mimicry, mean": Mimicry(kept=1500, like="mean"),
        "MaskedReplacement, colluders": MaskedReplacement(),
        "MaskedReplacement, shadow": MaskedReplacement(knowledge="shadow", boost=2.0),
        "MaskedReplacement, oracle": MaskedReplacement(knowledge="oracle", margin=0.0),
        "Adaptive, own rule": Adaptive(knowledge="oracle", rule=Invariant(tau=0.6)),
    }


def asked_for(attack: Attack) -> int:
    """Rehearsals in a round of N clients."""
    if isinstance(attack, Adaptive):
        return (F if attack.others == "benign" or attack.knowledge == "colluders" else 0) + (
            N - F if attack.knowledge == "shadow" else 0
        )
    if isinstance(attack, MaskedReplacement):
        return N if attack.knowledge == "shadow" else F
    return F if isinstance(attack, Mimicry) or getattr(attack, "knowledge", "") == "colluders" else 0


def all_rows() -> tuple[Tensor, Tensor, Tensor]:
    """Updates of very different size with ties, one of them not finite; rehearsals; and a last step with zeros."""
    updates = drawn(1, D, seed=3) + drawn(N, D) * 10 ** drawn(N, D, seed=1)
    updates[:, ::7] = updates[:, ::7].sign()
    updates[3, 4321] = float("nan")
    rehearsed = drawn(1, D, seed=3) + drawn(N, D, seed=2)
    return updates, rehearsed, drawn(1, D, seed=4)[0] * (drawn(1, D, seed=5)[0] > 0)


def rewritten_on_a_rank() -> dict[str, bytes]:
    """All rows after each attack, put together again from all ranks."""
    updates, rehearsed, last_step = all_rows()
    exchange = Exchange([3000, 1, 1999], torch.device("cpu"), bucket_bytes=1)
    columns = slice(exchange.start, exchange.stop)

    def shard_of(rows: Tensor, malicious: Tensor) -> UpdateShard:
        return UpdateShard(
            [part.clone() for part in rows[:, columns].split(1024, dim=1)],
            torch.arange(1.0, len(rows) + 1),
            malicious,
            num_coordinates=D,
            clients=torch.arange(len(rows)) * 3,
            start=exchange.start,
            distributed=exchange.distributed,
            seed=5,
            round_number=2,
        )

    found = {}
    for name, attack in rewriting().items():
        shard, count = shard_of(updates, MALICIOUS), asked_for(attack)
        honest = shard_of(rehearsed[:count], torch.zeros(count).bool()) if count else None
        attack.corrupt(shard, Knowledge(Invariant(tau=0.4).mask, honest, last_step[columns]))
        found[name] = b"".join(bits(exchange.to_all(shard.row(i).contiguous())) for i in range(N))
    return found


@pytest.fixture(scope="module")
def rewritten() -> dict[int, list[dict[str, bytes]]]:
    return {world: on_ranks(world, rewritten_on_a_rank) for world in WORLDS}


@pytest.mark.parametrize("name", rewriting())
def test_updates_are_rewritten_to_the_same_bits_on_any_number_of_ranks(name, rewritten):
    updates, rehearsed, last_step = all_rows()
    attack = rewriting()[name]
    shard = UpdateShard(
        [updates.clone()],
        torch.arange(1.0, N + 1),
        MALICIOUS,
        num_coordinates=D,
        clients=torch.arange(N) * 3,
        seed=5,
        round_number=2,
    )
    honest = UpdateShard.from_updates(rehearsed[: asked_for(attack)]) if asked_for(attack) else None
    attack.corrupt(shard, Knowledge(Invariant(tau=0.4).mask, honest, last_step))
    assert bits(shard.values[~MALICIOUS]) == bits(updates[~MALICIOUS])
    assert bits(shard.values[MALICIOUS]) != bits(updates[MALICIOUS])
    for world in WORLDS:
        for rank, found in enumerate(rewritten[world]):
            assert found[name] == bits(shard.values), f"rank {rank} of {world}"


def test_these_attacks_differ_from_each_other(rewritten):
    assert len(set(rewritten[1][0].values())) == len(rewriting())


# ---- whole runs ------------------------------------------------------------------------------------------------------


class Wide(TinyClient):
    """Four blocks of coordinates, so that on three ranks one has two of them and one has none; with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 40), nn.Dropout(), nn.Linear(40, CLASSES)
        )


def trigger() -> ValueTrigger:
    return ValueTrigger(column=5, value=4.0, source_label=1, target_label=0, poison_fraction=0.5)


def combinations() -> dict[str, list[Attack]]:
    """With poisoned data, rehearsals, projections, watched steps and buffers."""
    return {
        "none but the trigger": [trigger()],
        "projected, then scaled": [trigger(), PGD(eps=0.3, every=2, decay=0.9), ModelReplacement(buffers=True)],
        "held back, then disguised": [trigger(), Neurotoxin(fraction=0.2), Mimicry(kept=900, like="mean")],
        "held back by gradients": [trigger(), Neurotoxin(fraction=0.2, by="gradients", per_layer=True)],
        "pooled, then adapted to shadows": [trigger(), Collude(), Adaptive(knowledge="shadow", others="benign")],
        "one for all, then adapted to the last step": [trigger(), Collude(mode="first"), Adaptive()],
        "averaged, then noise": [trigger(), Collude(mode="mean"), GaussianNoise(sigma=0.01, add=True)],
        "crafted by colluders": [MinSum(knowledge="colluders", direction="std")],
        "replaced through a mask": [trigger(), MaskedReplacement(knowledge="shadow")],
        "rehearsed twice": [ALIE(knowledge="colluders", z=1.0), Adaptive(knowledge="colluders", others="zero")],
    }


def federation_of(attacks: list[Attack]) -> Any:
    torch.manual_seed(0)
    return tiny_federation(
        client=Wide(),
        attacks=attacks,
        cohort=CohortSampler(clients_per_round=6, malicious_fraction=0.34),
        local=LocalTraining(epochs=1, batch_size=8),
        bucket_bytes=1,
    )


def small_data() -> Any:
    return tiny_data(IID(num_clients=9), n=140)


def digests(world: int) -> dict[str, str]:
    found = {}
    for name, attacks in combinations().items():
        federation = federation_of(attacks)
        fit(federation, small_data(), rounds=2, devices=world)
        found[name] = weights_sha256(federation.client)
    return found


def test_runs_end_with_the_same_bits_on_any_number_of_ranks():
    (alone,) = on_ranks(1, digests, 1)
    assert len(set(alone.values())) == len(combinations())
    for world in (2, 3):
        for rank, found in enumerate(on_ranks(world, digests, world)):
            assert found == alone, f"rank {rank} of {world}"


def watching_run(folder: str, rounds: int, world: int, resume: bool) -> str:
    """Two attacks that watch how the global model moved, up to round `rounds`."""
    federation = federation_of([trigger(), Neurotoxin(fraction=0.3), Adaptive()])
    fit(
        federation,
        small_data(),
        rounds=rounds,
        devices=world,
        callbacks=[LastCheckpoint()],
        enable_checkpointing=True,
        default_root_dir=folder,
        ckpt_path="last" if resume else None,
    )
    return weights_sha256(federation.client)


def forgetting_run(folder: str) -> str:
    """As if the last step were not known after a resume."""
    federation = federation_of([trigger(), Neurotoxin(fraction=0.3), Adaptive()])

    class Forget(Watch):
        def on_train_epoch_start(self, trainer, pl_module) -> None:
            if trainer.global_step == 2:
                federation.last_step = torch.zeros_like(federation.last_step)

    fit(federation, small_data(), rounds=4, callbacks=[Forget()], default_root_dir=folder)
    return weights_sha256(federation.client)


def test_attacks_that_watch_steps_resume_with_the_same_bits(tmp_path):
    whole = watching_run(str(tmp_path / "whole"), 4, 1, False)
    assert forgetting_run(str(tmp_path / "forgetting")) != whole
    for first, then in ((1, 1), (3, 1), (1, 2)):
        folder = str(tmp_path / f"{first} then {then}")
        on_ranks(first, watching_run, folder, 2, first, False)
        assert set(on_ranks(then, watching_run, folder, 4, then, True)) == {whole}, (first, then)
