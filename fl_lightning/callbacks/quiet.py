"""What libraries say that does not concern a federation, and how it is kept off the screen."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

UNCONCERNING = (
    ".*LeafSpec.*",  # a deprecation inside Lightning
    ".*sync_dist=True.*",  # torchmetrics has added the ranks' counts already
    "Checkpoint directory .* exists and is not empty",  # so it is after a resume
    ".*`tensorboardX` has been removed.*",
    ".*does not have many workers.*",
    ".*there is no last checkpoint available.*",  # sweeps begin as they go on
    ".*`srun` command is available.*",  # on the login node of a cluster
    ".*was called without a model.*",  # OnExceptionCheckpoint is one of Lightning's checkpoints, and nothing is resumed
    "Using ModelCheckpoint with manual optimization.*",  # the state after the server's step is the one that is meant
)
"""Warnings that do not concern a federation."""


def quiet() -> None:
    """Keep off the screen what does not concern a federation; called once Lightning is imported, which sets its own."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # which accelerators there are
    for message in UNCONCERNING:
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def quietly() -> Iterator[None]:
    """`quiet`, for a while."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        quiet()
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
