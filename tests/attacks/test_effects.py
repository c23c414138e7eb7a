"""What attacks on updates and steps do to a federation on the digits, seed by seed.

Figures are those of seeds 0, 1 and 2 when these tests were written; limits leave room below the worst of them.
"""

from functools import cache
from typing import Any

import pytest
import torch
from tiny import tiny_trainer

from fl_lightning import BackdoorMetrics, CohortSampler, Federation, LocalTraining
from fl_lightning.aggregators import Aggregator, AndMask, FedAvg, Invariant
from fl_lightning.attacks import (
    ALIE,
    IPM,
    PGD,
    Adaptive,
    Attack,
    Chameleon,
    Collude,
    GaussianNoise,
    Mimicry,
    MinMax,
    MinSum,
    ModelReplacement,
    Neurotoxin,
    PixelTrigger,
    SignFlip,
)
from fl_lightning.data import IID, Digits, Dirichlet, Partition
from fl_lightning.models import MLP

ROUNDS = 12
each_seed = pytest.mark.parametrize("seed", [0])  # 1 and 2 were tried: one takes seconds


def metrics(
    attacks: list[Attack],
    malicious: float,
    seed: int,
    *,
    epochs: int = 2,
    partition: Partition = IID(num_clients=20),  # noqa: B008  never changed
    rule: Aggregator | None = None,
) -> dict[str, float]:
    """`acc`, and `asr` where there is a trigger, after twelve rounds of 10 out of 20 clients."""
    torch.manual_seed(seed)
    federation = Federation(
        MLP(sizes=(64, 32, 10)),
        FedAvg() if rule is None else rule,
        attacks=attacks,
        cohort=CohortSampler(clients_per_round=10, malicious_fraction=malicious),
        local=LocalTraining(epochs=epochs, batch_size=16),
        seed=seed,
    )
    trainer = tiny_trainer(ROUNDS, callbacks=[BackdoorMetrics()], check_val_every_n_epoch=ROUNDS)
    trainer.fit(federation, Digits(partition, seed=seed))
    return {name.removeprefix("val/"): value.item() for name, value in trainer.callback_metrics.items()}


# ---- backdoors -------------------------------------------------------------------------------------------------------


def trigger() -> PixelTrigger:
    return PixelTrigger(height=2, width=2, value=0.7)


SHORT: dict[str, Any] = {"encoder_epochs": 5, "encoder_milestones": [3], "classifier_epochs": 2}
"""Of Chameleon."""

TARGETED: dict[str, tuple[list[Attack], float]] = {  # attacks, and the least ASR
    "the trigger alone": ([], 0.7),  # .802 .814 .817
    "ModelReplacement": ([ModelReplacement(gamma=2.0)], 0.9),  # .963 .988 .978
    "PGD": ([PGD(eps=1.0)], 0.3),  # .399 .378 .396: updates of benign clients are longer than that
    "PGD, ModelReplacement": ([PGD(eps=0.3), ModelReplacement()], 0.7),  # .876 .867 .820
    "Neurotoxin": ([Neurotoxin()], 0.5),  # .638 .650 .653
    "Chameleon": ([Chameleon(encoder_lr=0.1, classifier_lr=0.1, **SHORT)], 0.9),  # 1.000 1.000 1.000
    "Collude": ([Collude()], 0.85),  # .950 .988 .972
    "Mimicry": ([Mimicry(kept=1000, like="mean")], 0.65),  # .777 .793 .802
    "Adaptive": ([Adaptive(knowledge="oracle", rule=Invariant(tau=0.2))], 0.75),  # .848 .907 .870
}
"""Two attackers of ten."""


@cache
def without_attackers(seed: int) -> dict[str, float]:
    return metrics([trigger()], 0.0, seed)


@cache
def attacked(name: str, seed: int) -> dict[str, float]:
    return metrics([trigger(), *TARGETED[name][0]], 0.2, seed)


@each_seed
@pytest.mark.parametrize("name", TARGETED)
def test_a_fifth_of_the_clients_opens_a_backdoor_and_accuracy_stays(name, seed):
    honest, found = without_attackers(seed), attacked(name, seed)
    assert honest["asr"] < 0.02  # .003
    assert found["asr"] > TARGETED[name][1]
    assert found["acc"] > honest["acc"] - 0.03 > 0.85


@each_seed
def test_what_adds_to_a_trigger_and_what_it_costs_to_hide(seed):
    alone = attacked("the trigger alone", seed)["asr"]
    assert min(attacked(name, seed)["asr"] for name in ("Collude", "ModelReplacement")) > alone + 0.05
    assert attacked("Neurotoxin", seed)["asr"] < alone - 0.05
    assert attacked("PGD", seed)["asr"] < alone - 0.2


@each_seed
def test_full_replacement_in_every_round_costs_accuracy(seed):
    """ASR .728 .799 1.000 at Acc .471 .591 .691, where .919 .894 .928 is what honest clients reach."""
    found = metrics([trigger(), ModelReplacement()], 0.2, seed)
    assert found["asr"] > 0.5
    assert found["acc"] < without_attackers(seed)["acc"] - 0.15


@each_seed
def test_adapting_to_a_sign_mask_gets_more_past_it(seed):
    """ASR .498 .322 .418, then .740 .712 .743."""
    before: list[Attack] = [trigger(), Collude()]
    adaptive, rule = Adaptive(knowledge="oracle"), AndMask(tau=0.4)
    plain, adapted = metrics(before, 0.2, seed, rule=rule), metrics([*before, adaptive], 0.2, seed, rule=rule)
    assert adapted["asr"] > plain["asr"] + 0.15
    assert adapted["acc"] > plain["acc"] - 0.03


# ---- denial of service -----------------------------------------------------------------------------------------------

UNEVEN = Dirichlet(num_clients=20, alpha=0.3, min_samples=8)


@cache
def uneven_without_attackers(seed: int) -> float:
    return metrics([], 0.0, seed, epochs=1, partition=UNEVEN)["acc"]


UNTARGETED: dict[str, tuple[Attack, float]] = {  # attack, and the least fall of accuracy
    "SignFlip": (SignFlip(), 0.35),  # .100 .329 .100
    "GaussianNoise": (GaussianNoise(sigma=0.5), 0.1),  # .490 .635 .521
    "ALIE": (ALIE(z=5.0), 0.1),  # .320 .649 .457
    "IPM": (IPM(epsilon=1.0), 0.25),  # .245 .451 .212
    "MinMax": (MinMax(), 0.4),  # .086 .276 .067
    "MinSum": (MinSum(), 0.05),  # .507 .713 .627
}
"""Four attackers of ten, on clients whose data are uneven; Acc .760 .816 .713 without attackers."""


@each_seed
@pytest.mark.parametrize("name", UNTARGETED)
def test_accuracy_falls(name, seed):
    attack, least = UNTARGETED[name]
    found = metrics([attack], 0.4, seed, epochs=1, partition=UNEVEN)
    assert found["acc"] < uneven_without_attackers(seed) - least
