"""What a client's own code raises while it trains: known mistakes become one line, and of all others it is said where.

Other errors stay as they are, with a note that tracebacks show and the command line adds to its line.
"""

from __future__ import annotations

import re

from lightning.pytorch.utilities.exceptions import SIGTERMException

from fl_lightning.errors import ConfigurationError, said
from fl_lightning.training.client_trainer import ClientTrainer

MISTAKES = {
    r"to use manual_backward, please disable automatic": (
        "calls manual_backward, but local training takes modules with automatic optimization, and calls backward itself; "
        "return the loss from training_step instead"
    ),
    r"Tried to step \d+ times\. The specified number of total steps is (\d+)": (
        r"has a scheduler for \1 steps, but this client takes more; make it with "
        "total_steps=self.trainer.estimated_stepping_batches"
    ),
    r"Could not run 'aten::_?(\w+)[\w.]*' with arguments from the 'Sparse": (
        r"gives a sparse tensor to \1, which takes dense ones alone; make it dense with .to_dense()"
    ),
}
"""Patterns in what errors say, and what is wrong with the client then."""


class blamed:  # noqa: N801  used as a function; a generator would take longer to enter
    """Around a client's training.

    Args:
        trainer: what the client sees of it.

    Raises:
        ConfigurationError: in place of an error that one of `MISTAKES` stands for.
        RuntimeError: in place of what would end the run as if it were done.
    """

    __slots__ = ("trainer",)

    def __init__(self, trainer: ClientTrainer) -> None:
        self.trainer = trainer

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, ConfigurationError):
            return
        name = type(self.trainer.model).__name__
        if ends_quietly(error):
            fault = RuntimeError(
                f"the client {name} raises {type(error).__name__}, by which a run would end as if it were done"
            )
            fault.add_note(where(self.trainer))
            raise fault from error
        if not isinstance(error, Exception):
            return
        for pattern, wrong in MISTAKES.items():
            if found := re.search(pattern, said(error)):
                raise ConfigurationError(f"the client {name} {found.expand(wrong)}") from error
        error.add_note(where(self.trainer))


def ends_quietly(error: BaseException) -> bool:
    """Whether loops and interpreters take it for an end that was wanted, as `next(...)` of an empty iterator."""
    leaves = isinstance(error, SystemExit) and not error.code and not isinstance(error, SIGTERMException)
    return leaves or isinstance(error, (StopIteration, GeneratorExit))


def where(trainer: ClientTrainer) -> str:
    """How far a client's training has come."""
    taken, steps = trainer.global_step, trainer.batches
    if not trainer.optimizers:
        return "before its first batch"
    return f"on batch {taken + 1} of {steps}" if taken < steps else f"after its {steps} batches"
