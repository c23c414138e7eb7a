"""What became of the clients of a round, for callbacks to read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from fl_lightning.cohort import Cohort
from fl_lightning.updates.shard import UpdateShard


@runtime_checkable
class RoundObserver(Protocol):
    """A Lightning callback with this method is shown every round's updates and what became of them."""

    def on_aggregate(self, federation: Any, shard: UpdateShard, aggregate: Tensor) -> None:
        """Called on all ranks between aggregation and server step, with the `Federation`; `aggregate` is (S,).

        `federation.outcome` has the whole cohort and the rule's verdict on it. A callback that calls a collective must do so
        on all ranks.
        """


def observers(callbacks: Iterable[object]) -> list[RoundObserver]:
    """Those that are shown every round. To ask whether one is a `RoundObserver` takes eighty times as long."""
    return [cast("RoundObserver", callback) for callback in callbacks if hasattr(callback, "on_aggregate")]


@dataclass
class RoundOutcome:
    """The same on all ranks; `Federation.outcome` is that of the round under way, or of the last one.

    Attributes:
        round: t, from 0.
        cohort: the N clients that reported, with `clients`, `malicious` and `weights` (sample counts), (N,) each.
        stays: (N,) bool on the CPU, whose updates were finite; the others were excluded.
        verdict: (N,) float32 on the CPU in [0, 1], see `UpdateShard.judge`; 0 for who was excluded. None where the rule does
            not judge clients.
        logs: what each client logged in training, by name; empty until the server has made its step.
    """

    round: int
    cohort: Cohort
    stays: Tensor
    verdict: Tensor | None
    logs: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def of(cls, cohort: Cohort, stays: Tensor, shard: UpdateShard, judges: bool) -> RoundOutcome:
        """The outcome of a round after aggregation.

        Args:
            cohort: N clients.
            stays: (N,) bool on the CPU.
            shard: the updates of those that stay; its verdict is brought to the rows of the cohort.
            judges: whether the rule does; it was not asked where no update was left.
        """
        verdict = torch.zeros(0) if judges and not shard.num_clients else shard.verdict
        if verdict is not None:
            verdict = torch.zeros(len(stays)).masked_scatter_(stays, verdict)
        return cls(shard.round_number, cohort, stays, verdict)
