"""How often benign clients disagree with their own mean, coordinate by coordinate and round by round.

X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks",
AISTATS 2024, https://arxiv.org/abs/2210.01834: Theorem 10 rests on the probability p that noise flips the sign of a benign
pseudo-gradient, which is estimated here from a run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from fl_lightning.callbacks.lines_of_rounds import open_lines
from fl_lightning.callbacks.trial import is_trial
from fl_lightning.errors import ConfigurationError
from fl_lightning.federation import Federation
from fl_lightning.files.run_files import RoundLines
from fl_lightning.updates.shard import UpdateShard

FILE = "flip_rates.jsonl"


@dataclass(frozen=True)
class RoundFlips:
    """The flips of one round.

    Attributes:
        round: t, from 0.
        benign: B, benign clients whose updates were finite, at least 1.
        malicious: malicious clients likewise.
        counts: B + 1 numbers of coordinates; `counts[k]` of them are those in which k benign clients do not have the sign of
            the benign clients' mean. Their sum is d.
        zeros: coordinates in which some benign client has an exact zero, whose sign is that of no vote.
    """

    round: int
    benign: int
    malicious: int
    counts: list[int]
    zeros: int

    @property
    def rate(self) -> float:
        """The mean over coordinates and benign clients, in [0, 1]."""
        return sum(k * count for k, count in enumerate(self.counts)) / (self.benign * sum(self.counts))


class FlipRates(L.Callback):
    """Appends a line per round to `flip_rates.jsonl` in `Trainer(default_root_dir=...)`, with the fields of `RoundFlips`, and
    logs the mean flip rate as `diagnostics/flip_rate`; the same on any number of ranks.

    A resumed run adds the rounds that are not there yet; a fresh one begins the file anew. Rounds without a benign update have
    no line. `fl-lightning analyse certify` reads the file. Costs about as much as a plain mean, in double precision.

    The sign of the mean stands in for that of the expectation, which nobody knows. It follows the clients that it is taken
    over, so that rates come out too small: where benign entries are noise, p is .5, but arccos(1/sqrt(B))/pi is counted, .42
    with B = 16.

    Example:
        >>> trainer = L.Trainer(strategy="federated", callbacks=[FlipRates()])
    """

    def __init__(self) -> None:
        self.lines: RoundLines | None = None
        self.kept: dict[str, Any] = {}  # the file as it was at the checkpoint that the run goes on from

    def measured(self, federation: L.LightningModule) -> list[str]:
        """What will be logged in training, by its full name."""
        return ["diagnostics/flip_rate"]

    def state_dict(self) -> dict[str, Any]:
        return {} if self.lines is None else self.lines.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.kept = state_dict

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.lines = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the file at the first round: what an earlier run left has been put aside by now."""
        if self.lines is not None or is_trial(trainer) or not trainer.is_global_zero:
            return
        self.lines = open_lines(self, trainer, FILE, self.kept)

    def on_aggregate(self, federation: Federation, shard: UpdateShard, aggregate: Tensor) -> None:
        if bool(shard.malicious.all()):  # also if no update is left
            return
        flips = count_flips(shard)
        federation.log("diagnostics/flip_rate", flips.rate, batch_size=1)
        if self.lines is not None:
            self.lines.add(asdict(flips))


def count_flips(shard: UpdateShard) -> RoundFlips:
    """The flips in a round's updates, of which at least one is benign.

    Example:
        >>> shard = UpdateShard.from_updates(torch.tensor([[1.0, 2.0], [1.0, -1.0], [1.0, 0.0]]))
        >>> count_flips(shard).counts, count_flips(shard).zeros
        ([1, 0, 1, 0], 1)
    """
    benign = ~shard.malicious
    number = int(benign.sum())
    assert number, "a round without a benign update has no flips"

    def partial(values: Tensor) -> Tensor:
        """(B + 2,) int64: coordinates by the number of flips, and those with zeros; of (N, c)."""
        votes = values[benign]  # (B, c): a block of them, never all coordinates
        sign = votes.sum(0).sign()  # of the mean; in double precision the order of the clients does not show
        flips = (votes.sign() != sign).sum(0)
        zeros = (votes == 0).any(0).sum()
        return torch.cat([torch.bincount(flips, minlength=number + 1), zeros[None]])

    *counts, zeros = shard.reduce(partial).tolist()
    return RoundFlips(shard.round_number, number, shard.num_clients - number, counts, zeros)


def read_flip_rates(path: Path) -> list[RoundFlips]:
    """The rounds in a record, without a last line that was cut off when a run was killed.

    Raises:
        ConfigurationError: for a file that is not such a record.
        OSError: if it cannot be read.
    """
    *lines, _ = path.read_text().split("\n")  # after the last end of a line comes nothing, or what was cut off
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(RoundFlips(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{path}, line {number}, is no line of FlipRates ({error}); delete the file and record the run again"
            ) from error
    return found
