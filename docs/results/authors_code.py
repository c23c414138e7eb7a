"""Small inputs on which rules and attacks are compared with their authors' code, and what ours make of them.

Every input is made by a formula of whole numbers. Letters: i a client, k a coordinate, t a round, all from 0. Clients' numbers
are changes of the model, new minus old, which is what most authors' code takes; ours take the negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from fl_lightning.aggregators import (
    CRFL,
    FLAME,
    FLARE,
    LASA,
    RFLBAT,
    RLR,
    AlignIns,
    DeepSight,
    DnC,
    FLDetector,
    FLTrust,
    FoolsGold,
    MultiMetrics,
    SignGuard,
)
from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.deep_sight import output_updates
from fl_lightning.aggregators.flare import discrepancies
from fl_lightning.aggregators.multi_metrics import scores
from fl_lightning.aggregators.sparse_masks import prune_and_regrow
from fl_lightning.analysis.crfl import Threat, contraction, radius, vote_bounds
from fl_lightning.attacks import ALIE, Attack, Attacker, Knowledge, MinMax, MinSum, Neurotoxin
from fl_lightning.attacks.base import Broadcast
from fl_lightning.attacks.critical_layers import BackdoorCriticalLayers, critical_tensors
from fl_lightning.attacks.feedback import fates
from fl_lightning.attacks.focused_flips import flipped_to_pattern, lowest
from fl_lightning.data.base import TensorSamples
from fl_lightning.updates import UpdateShard
from fl_lightning.updates.layers import layers_of

N, D, F = 10, 40, 2
"""Clients, coordinates, and how many of the first clients are attackers, where nothing else is said."""

TENSORS = [("a.weight", (5, 4)), ("a.bias", (5,)), ("b.weight", (3, 4)), ("b.bias", (3,))]
COUNTS = [10 + 3 * i for i in range(N)]
Found = dict[str, list[float]]

# ---- inputs ----------------------------------------------------------------------------------------------------------


def grid(n: int = N, d: int = D) -> tuple[Tensor, Tensor]:
    """(n, 1) i and (d,) k."""
    return torch.arange(n)[:, None], torch.arange(d)


def common(k: Tensor) -> Tensor:
    """((3 k^2 + 5 k + 1) mod 17 - 8) / 8"""
    return ((3 * k * k + 5 * k + 1) % 17 - 8) / 8


def own(i: Tensor, k: Tensor) -> Tensor:
    """((i + 1) (k + 1) (k + i + 3) mod 23 - 11) / 16"""
    return (((i + 1) * (k + 1) * (k + i + 3)) % 23 - 11) / 16


def changes(n: int = N) -> Tensor:
    """common(k) + own(i, k), of attackers -1.5 common(k) + own(i, k)."""
    i, k = grid(n)
    return (torch.where(i < F, -1.5, 1.0) * common(k) + own(i, k)).float()


def model(d: int = D) -> Tensor:
    """2 common(k) + ((5 k^2 + k) mod 13 - 6) / 8"""
    k = torch.arange(d)
    return (2 * common(k) + ((5 * k * k + k) % 13 - 6) / 8).float()


def alike() -> Tensor:
    """(1 + i / 8) common(k): all clients agree on all signs."""
    i, k = grid()
    return ((1 + i / 8) * common(k)).float()


def signed(t: int) -> Tensor:
    """(10, 80) magnitudes common(k) + 11/8 + ((i + 1) (k + 1) (k + i + 3 + t) mod 23 + 1) / 16, with signs that repeat after 8
    coordinates, so that any 8 side by side have the same: of each 8 the first 4 or 5 (client 0: 2) are positive, the next 0,
    the others negative. Client 1 has them 4 places on, client 9 is 8 times as long.
    """
    i, k = grid(N, 80)
    size = common(k) + 11 / 8 + (((i + 1) * (k + 1) * (k + i + 3 + t)) % 23 + 1) / 16
    positive = torch.tensor([2, 5, 5, 4, 5, 4, 5, 4, 5, 5])[:, None]
    place = (k + 4 * (i == 1)) % 8
    sign = torch.where(place < positive, 1.0, torch.where(place < positive + 1, 0.0, -1.0))
    return size * sign * torch.where(i == 9, 8.0, 1.0)


def gradient(weights: Tensor, t: int, attackers: int) -> Tensor:
    """(10, 40), of quadratic losses with minima ((i + 1) (3 k + 2) mod 11 - 5) / 8 and curvatures (k mod 5 + 1) / 16, plus
    ((i + 2) (k + 3) (t + 5) mod 19 - 9) / 256; of attackers ((i + 3) (k + 1) (k + 2 t + 1) mod 29 - 14) / 4."""
    i, k = grid()
    minima = (((i + 1) * (3 * k + 2)) % 11 - 5) / 8
    honest = (weights - minima) * (k % 5 + 1) / 16 + (((i + 2) * (k + 3) * (t + 5)) % 19 - 9) / 256
    return torch.where(i < attackers, (((i + 3) * (k + 1) * (k + 2 * t + 1)) % 29 - 14) / 4, honest).float()


def three_groups() -> Tensor:
    """(14, 40): -3 common(k) + own(i, k) / 4 of three attackers, common(k) + own(i, k) of others."""
    i, k = grid(14)
    return torch.where(i < 3, -3 * common(k) + own(i, k) / 4, common(k) + own(i, k)).float()


def features() -> Tensor:
    """(8, 5, 3) of clients i, samples j, features h: ((i + 1) (j + 2) (h + 1) 3 mod 11) / 8, of two attackers 1.5 more."""
    i, j, h = (torch.arange(n).view([-1 if axis == at else 1 for axis in range(3)]) for at, n in enumerate((8, 5, 3)))
    return (((i + 1) * (j + 2) * (h + 1) * 3) % 11) / 8 + 1.5 * (i < 2)


def output_changes() -> Tensor:
    """(10, 40) as 5 classes of 7 weights, then 5 biases: own(i, k), of attackers a sixteenth of it but for class 2."""
    i, k = grid()
    of_class = torch.where(k < 35, k // 7, k - 35)
    return (own(i, k) * torch.where((i < F) & (of_class != 2), 1 / 16, 1.0)).float()


def network(shift: int = 0) -> nn.Sequential:
    """4-6-3 with ReLU, weights ((3 j^2 + j) mod 13 - 6) / 8 in order j, plus ((j^2 + shift j) mod 7 - 3) shift / 16."""
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    j = torch.arange(51)
    flat = ((3 * j * j + j) % 13 - 6) / 8 + ((j * j + shift * j) % 7 - 3) * shift / 16
    nn.utils.vector_to_parameters(flat, module.parameters())
    return module.requires_grad_(True)


def samples() -> tuple[Tensor, Tensor]:
    """(16, 4) inputs ((j + 2) (k + 1) (j + k + 1) mod 9 - 4) / 4 and classes (5 j + 1) mod 3."""
    j, k = torch.arange(16)[:, None], torch.arange(4)
    return (((j + 2) * (k + 1) * (j + k + 1)) % 9 - 4) / 4, (5 * torch.arange(16) + 1) % 3


def attack_rate(module: nn.Module) -> float:
    """Share of the inputs plus (0, 0, 1.5, -1.5) that a network takes for class 2."""
    return float((module(samples()[0] + torch.tensor([0, 0, 1.5, -1.5])).argmax(1) == 2).float().mean())


def kernels() -> tuple[Tensor, Tensor, Tensor]:
    """(4, 2, 3, 3) weights w = ((5 j^2 + 3 j) mod 73 - 36) / 32 in order j, those before, w - (7 j mod 11 - 5) / 64 - j / 4096,
    and a (2, 3, 3) pattern ((5 j) mod 13) / 13."""
    j = torch.arange(72)
    weights = ((5 * j * j + 3 * j) % 73 - 36) / 32
    before = weights - ((7 * j) % 11 - 5) / 64 - j / 4096
    return weights.view(4, 2, 3, 3), before.view(4, 2, 3, 3), (((5 * j[:18]) % 13) / 13).view(2, 3, 3)


def sparse() -> tuple[Tensor, Tensor, Tensor]:
    """(40,) mask, 1 where (7 k + 3) mod 4 = 0; weights (11 k mod 41 - 20.25) / 8; gradient ((17 k + 5) mod 41 - 20.25) / 4."""
    k = torch.arange(D)
    return ((7 * k + 3) % 4 == 0).float(), ((11 * k) % 41 - 20.25) / 8, ((17 * k + 5) % 41 - 20.25) / 4


# ---- ours ------------------------------------------------------------------------------------------------------------


def shard_of(given: Tensor, *, counts: bool = False, tensors: bool = False, round_number: int = 0) -> UpdateShard:
    shard = UpdateShard.from_updates(-given, torch.tensor(COUNTS, dtype=torch.float32) if counts else None)
    shard.broadcast, shard.round_number = model() if given.shape[1] == D else None, round_number
    if tensors:
        shard.layers = layers_of([name for name, _ in TENSORS], [shape for _, shape in TENSORS])
    return shard


def combined(rule: Aggregator, shard: UpdateShard) -> Found:
    """Whom a rule keeps, if it says so, and the change that it makes of all."""
    change = -rule(shard)
    found = {"change": change.tolist()}
    return found if shard.verdict is None else {"kept": (shard.verdict > 0).nonzero().flatten().tolist(), **found}


def sign_guard(similarity: Any, warmup_rounds: int) -> Found:
    rule, found = SignGuard(similarity=similarity, warmup_rounds=warmup_rounds), {}
    for t in range(5):
        found = combined(rule, shard_of(signed(t), round_number=t))
    return found


def fl_detector(attackers: int) -> Found:
    """Scores of round 5, and who is flagged after round 6."""
    rule, weights, told = FLDetector(window=3, warmup_rounds=4), torch.zeros(D), []
    for t in range(7):
        shard = UpdateShard.from_updates(gradient(weights, t, attackers))
        shard.broadcast, shard.round_number = weights.clone(), t
        if t == 6:
            told = [rule.scores[client][-1] for client in range(N)]
        weights = weights - rule(shard)
    return {"flagged": sorted(rule.flagged), "scores": told}


def rflbat(clusters: int) -> Found:
    with patch("fl_lightning.aggregators.rflbat.number_of_clusters", lambda *_: clusters):
        return {"kept": combined(RFLBAT(), shard_of(three_groups()))["kept"]}


def multi_metrics() -> Found:
    shard = shard_of(changes(), counts=True)
    return {**combined(MultiMetrics(), shard), "scores": scores(MultiMetrics().features(shard)).tolist()}


def weights_of(given: Tensor) -> Found:
    shard = shard_of(given)
    FoolsGold(use_history=False)(shard)
    return {"weights": [] if shard.verdict is None else shard.verdict.tolist()}


def deep_sight() -> Found:
    rule, shard = DeepSight(probe_samples=0), shard_of(output_changes())
    shard.layers = layers_of(["o.weight", "o.bias"], [(5, 7), (5,)])
    energies, _ = output_updates(shard, *rule.outputs(shard.layers))
    relative = energies.square() / energies.square().sum(1, keepdim=True)
    return {"suspicious": rule.suspicious(energies).nonzero().flatten().tolist(), "NEUP": relative.flatten().tolist()}


def clipped() -> Found:
    module: Any = nn.Linear(8, 5, bias=False)
    module.weight.data = model().view(5, 8)
    CRFL().after_step(module, 9)  # the allowed length is 3
    return {"weights": module.weight.flatten().tolist()}


VOTES = [[900, 100], [800, 200], [1000, 0]]


def certified(votes: list[list[int]], attackers: int = 1, sigma: float = 0.01, rounds: int = 100) -> Found:
    threat = Threat(attackers, share=0.05, scale=10, poisoned=0.05, steps=30, learning_rate=0.001, smoothness=math.sqrt(17))
    later = range(11, rounds + 1)
    left = contraction([0.1 * t + 2 for t in later], [sigma] * len(later))
    return {"radius": radius(*vote_bounds(torch.tensor(votes), 1000, 0.001), threat, sigma, left).tolist()}


def crafted(attack: Attack, given: Tensor) -> Found:
    """What attackers send, old minus new, where all but the first two clients are honest."""
    shard = UpdateShard.from_updates(-given, malicious=torch.arange(len(given)) < F)
    attack.corrupt(shard, Knowledge(mask=lambda _: torch.ones(1, dtype=torch.bool)))
    return {"sent": shard.values[0].tolist()}


def neurotoxin(per_layer: bool) -> Found:
    attack, module, data = Neurotoxin(fraction=0.25, by="gradients", per_layer=per_layer), network(), TensorSamples(*samples())
    attack.plan(module, [data], [Attacker(client=0, seed=0, pool=data)])
    held = attack.held(Broadcast(weights=torch.zeros(51)), [parameter.numel() for parameter in module.parameters()])
    return {"held": held.nonzero().flatten().tolist()}


def critical_layers(threshold: float, strength: float) -> Found:
    benign, malicious, sent = (nn.utils.parameters_to_vector(network(shift).parameters()).detach() for shift in (3, 16, 0))
    names = [name for name, _ in network().named_parameters()]
    chosen = critical_tensors(network(3), network(16), attack_rate, threshold)
    shard = UpdateShard.from_updates((sent - malicious)[None], malicious=torch.tensor([True]))
    shard.layers = layers_of(names, [tuple(parameter.shape) for parameter in network().parameters()])
    attack = BackdoorCriticalLayers(strength=strength)
    attack.critical = chosen
    honest = UpdateShard.from_updates((sent - benign)[None])
    attack.corrupt(shard, Knowledge(lambda _: torch.ones(1, dtype=torch.bool), rehearsed=honest))
    return {"tensors": [names.index(name) for name in chosen], "model": (sent - shard.values[0]).tolist()}


def flips(share: float) -> Found:
    weights, before, pattern = kernels()
    found = flipped_to_pattern(weights, lowest((weights - before) * weights, share), pattern)
    return {"flipped": (found != weights).flatten().nonzero().flatten().tolist(), "weights": found.flatten().tolist()}


def regrown(t: int) -> Found:
    mask, weights, slope = sparse()
    share = 0.25 * (1 + math.cos(math.pi * t / 10)) if t <= 10 else 0.0
    return {"mask": prune_and_regrow(mask, weights, slope, share).nonzero().flatten().tolist()}


MOVED = [0.05, 0.02, 0.0, 0.04, -0.000001]
"""Of the model at planted values of .5."""

STATES = ["rejected", "clipped", "accepted"]

OURS: dict[str, Callable[[], Found]] = {
    "AlignIns": lambda: combined(AlignIns(), shard_of(changes(), counts=True)),
    "AlignIns, all MPSA equal": lambda: combined(AlignIns(), shard_of(alike(), counts=True)),
    "LASA, lambda_n 1": lambda: combined(LASA(average="sparsified"), shard_of(changes(), tensors=True)),
    "LASA, lambda_n 2": lambda: combined(LASA(average="sparsified", lambda_n=2.0), shard_of(changes(), tensors=True)),
    "LASA, dense": lambda: combined(LASA(), shard_of(changes(), tensors=True)),
    "SignGuard": lambda: sign_guard(None, 3),
    "SignGuard, cosine": lambda: sign_guard("cosine", 3),
    "SignGuard, distance": lambda: sign_guard("distance", 1),
    "MultiMetrics": multi_metrics,
    "FLDetector, 3 attackers": lambda: fl_detector(3),
    "FLDetector, none": lambda: fl_detector(0),
    "RLR": lambda: combined(RLR(threshold=6), shard_of(changes(), counts=True)),
    "FoolsGold": lambda: weights_of(changes()),
    "FoolsGold, copies of client 2": lambda: weights_of(changes()[[2] * N]),
    "FoolsGold, copies of client 1": lambda: weights_of(changes()[[1] * N]),
    "DnC": lambda: combined(DnC(num_malicious=2, num_iterations=1, subset_fraction=1.0), shard_of(changes())),
    "RFLBAT, 2 clusters": lambda: rflbat(2),
    "RFLBAT, 3 clusters": lambda: rflbat(3),
    "FLTrust": lambda: {"change": (-FLTrust()(-changes(), root=-changes(12)[11])).tolist()},
    "FLARE": lambda: {"trust": FLARE(trust="share").trusts(features(), 1.0).tolist()},
    "FLARE, MMD of clients 2 and 3": lambda: {"MMD": [float(discrepancies(features(), 1.0)[2, 3])]},
    "FLAME": lambda: combined(FLAME(noise_factor=0.0), shard_of(changes())),
    "FLAME, of models": lambda: combined(FLAME(noise_factor=0.0), shard_of(changes())),
    "DeepSight, step 1": deep_sight,
    "CRFL, clipping": clipped,
    "CRFL, radius": lambda: certified(VOTES),
    "CRFL, radius, 3 attackers": lambda: certified(VOTES[:1], attackers=3),
    "CRFL, radius, sigma 1": lambda: certified(VOTES[:1], sigma=1.0, rounds=30),
    "CRFL, radius, a vote that is not certain": lambda: certified([[500, 450]]),
    **{f"Lockdown, round {t}": lambda t=t: regrown(t) for t in (0, 5, 12)},
    "MinMax, unit": lambda: crafted(MinMax(direction="unit"), changes()),
    "MinMax, sign": lambda: crafted(MinMax(direction="sign"), changes()),
    "MinMax, std": lambda: crafted(MinMax(direction="std"), changes()),
    "MinMax, unit, long updates": lambda: crafted(MinMax(direction="unit"), 16 * changes()),
    "MinSum, unit": lambda: crafted(MinSum(direction="unit"), changes()),
    "MinSum, sign": lambda: crafted(MinSum(direction="sign"), changes()),
    "MinSum, std": lambda: crafted(MinSum(direction="std"), changes()),
    "ALIE, z 1": lambda: crafted(ALIE(z=1.0), changes()),
    "Neurotoxin, all tensors": lambda: neurotoxin(per_layer=False),
    "Neurotoxin, by tensor": lambda: neurotoxin(per_layer=True),
    "BackdoorCriticalLayers, threshold .5, strength 1": lambda: critical_layers(0.5, 1.0),
    "BackdoorCriticalLayers, threshold .8, strength .5": lambda: critical_layers(0.8, 0.5),
    "F3BA, 2%": lambda: flips(0.02),
    "F3BA, 25%": lambda: flips(0.25),
    "ThreeDFed, fates": lambda: {"fates": [STATES.index(fate) for fate in fates([step / 0.5 for step in MOVED])]},
}
