"""Whether a run's settings lie where Theorem 10 holds, and what its bounds are at the flip rates that were recorded.

X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks",
AISTATS 2024, https://arxiv.org/abs/2210.01834, Theorems 10 and 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl_lightning.analysis.theory import Bounds, Progress, Setting, theorem10, theorem11
from fl_lightning.callbacks.flip_rates import FILE, RoundFlips
from fl_lightning.cohort import CohortSampler
from fl_lightning.errors import ConfigurationError

QUANTILES = (("median", 0.5), ("90%", 0.9), ("99%", 0.99))


@dataclass(frozen=True)
class At:
    """The bounds at one flip rate.

    Attributes:
        name: which of the recorded rates.
        p: the rate.
        bounds: Theorem 10's.
        progress: Theorem 11's for them.
    """

    name: str
    p: float
    bounds: Bounds
    progress: Progress


@dataclass(frozen=True)
class Certificate:
    """What can be said of a run.

    Attributes:
        setting: N, N', alpha and tau.
        rounds: recorded rounds.
        coordinates: d.
        zero_share: share of the recorded coordinates in which some benign client has an exact zero; Theorem 10 has none.
        at: the bounds at the mean, median, 90% and 99% quantile and maximum of the flip rates of all coordinates and rounds.
    """

    setting: Setting
    rounds: int
    coordinates: int
    zero_share: float
    at: list[At]


def rates(record: Sequence[RoundFlips]) -> list[tuple[str, float]]:
    """Mean, quantiles and maximum of the flip rates k / B of all coordinates of all rounds.

    A quantile is the smallest rate that at least this share of the coordinates does not exceed.

    Example:
        >>> rates([RoundFlips(round=0, benign=2, malicious=0, counts=[6, 4, 0], zeros=0)])
        [('mean', 0.2), ('median', 0.0), ('90%', 0.5), ('99%', 0.5), ('max', 0.5)]
    """
    values = np.concatenate([np.arange(flips.benign + 1) / flips.benign for flips in record])
    counts = np.concatenate([np.array(flips.counts, dtype=np.int64) for flips in record])
    order = np.argsort(values, kind="stable")
    values, counts = values[order], counts[order]
    below, total = np.cumsum(counts), int(counts.sum())
    quantiles = [(name, float(values[np.searchsorted(below, share * total - 1e-9)])) for name, share in QUANTILES]
    return [("mean", float(values @ counts / total)), *quantiles, ("max", float(values[counts > 0].max()))]


def find_record(config: dict[str, Any], file: Path) -> Path:
    """Where a run's flip rates lie: in its folder, or beside the configuration.

    Raises:
        ConfigurationError: if they lie in neither.
    """
    folder = Path(config["trainer"].get("default_root_dir") or ".")
    places = [file.parent / FILE, folder / FILE] if file.name == "config.yaml" else [folder / FILE, file.parent / FILE]
    for path in places:
        if path.is_file():
            return path
    raise ConfigurationError(
        f"there is no record of flip rates, neither {places[0]} nor {places[1]}; add FlipRates to trainer.callbacks "
        "(--trainer.callbacks+ FlipRates) and run `fit` again"
    )


def setting_of(config: dict[str, Any], record: Sequence[RoundFlips]) -> Setting:
    """N, N', alpha and tau of a run.

    N' is that of the configuration, or the largest that was recorded if that is larger: before `start_round` nobody attacks,
    and a random pool may hold more than its share.

    Raises:
        ConfigurationError: if the rule is not `Invariant`.
    """
    rule = config["model"]["aggregator"]
    name = rule["class_path"].rpartition(".")[2]
    if name != "Invariant":
        raise ConfigurationError(
            f"Theorem 10 is about the invariant aggregator, but model.aggregator is {name}; certify a run with Invariant"
        )
    cohort: dict[str, Any] = config["model"]["cohort"]
    arguments: dict[str, Any] = {**cohort, "rounds": tuple(cohort["rounds"])}
    sampler = CohortSampler(**arguments)
    malicious = max([sampler.malicious_per_round, *(flips.malicious for flips in record)])
    given = rule["init_args"]
    return Setting(sampler.clients_per_round, malicious, given["alpha"], given["tau"], inclusive=given["inclusive"])


def certify(
    setting: Setting,
    record: Sequence[RoundFlips],
    *,
    rounds: int,
    distance: float = 1.0,
    smallest: float = 0.01,
    largest: float = 0.02,
) -> Certificate:
    """Theorem 10's bounds and Theorem 11's probabilities at the recorded flip rates.

    Args:
        setting: of the run.
        record: its rounds, at least one.
        rounds: T of Theorem 11.
        distance: c of Theorem 11, which a run does not tell, like the next two.
        smallest: eta_-.
        largest: eta^-.
    """
    assert record, "nothing was recorded"
    coordinates = sum(record[0].counts)
    found = []
    for name, p in rates(record):
        bounds = theorem10(setting, p)
        progress = theorem11(
            bounds.benign,
            bounds.malicious,
            rounds=rounds,
            distance=distance,
            smallest=smallest,
            largest=largest,
            coordinates=coordinates,
        )
        found.append(At(name, p, bounds, progress))
    share = sum(flips.zeros for flips in record) / sum(sum(flips.counts) for flips in record)
    return Certificate(setting, len(record), coordinates, share, found)
