"""Whether the first round has trained anybody.

A `training_step` may return None to skip a batch. One that does so every time, as it lost its `return`, trains nobody, and
the run would go through all its rounds with the model that it began with.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from fl_lightning.errors import ConfigurationError

log = logging.getLogger(__name__)


@dataclass
class Taken:
    """What became of the batches that clients were given.

    Attributes:
        batches: all of them, as far as they were given one by one.
        skipped: those for which `training_step` returned None, or `on_train_batch_start` -1.
        moved: whether anybody's weights are others than those they started from.
    """

    batches: int = 0
    skipped: int = 0
    moved: bool = False


def check_anybody_trained(of_ranks: Sequence[Taken], kind: str, t: int) -> None:
    """Look at what all ranks' clients have taken in round t, the first of this process.

    Args:
        of_ranks: one per rank.
        kind: the client's class.
        t: the round.

    Raises:
        ConfigurationError: every batch was skipped, and no weight moved. Where weights stay for another reason, as at a
            learning rate of 0, this is said, as a warm-up may begin so.

    Example:
        >>> check_anybody_trained([Taken(batches=8, skipped=8), Taken()], "Net", 0)
        Traceback (most recent call last):
        fl_lightning.errors.ConfigurationError: nobody is trained: training_step of the client Net returned None for ...
    """
    if any(taken.moved for taken in of_ranks):
        return
    batches, skipped = sum(taken.batches for taken in of_ranks), sum(taken.skipped for taken in of_ranks)
    if batches and skipped == batches:
        raise ConfigurationError(
            f"nobody is trained: training_step of the client {kind} returned None for (or on_train_batch_start skipped) every "
            f"one of the {batches} batches that clients had in round {t}; return the loss, and None only for a batch to be "
            "left out"
        )
    log.warning(
        "no client's weights changed in round %d: look at the learning rate, and at hooks of the client %s that take steps or "
        "call backward themselves",
        t,
        kind,
    )
