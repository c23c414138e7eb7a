"""What would end a run as if it were done, raised by callbacks, loggers, rules or attacks, is an error.

Lightning's loops take a StopIteration, wherever it comes from, for the end of their batches: a `next(...)` of an empty iterator
in a callback would leave the rounds that were to come undone, and nothing would be said. All hooks pass through the Trainer's
profiler, and all that loggers get through its connector, so that is where they are watched.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import lightning as L

from fl_lightning.training.client_errors import ends_quietly

LIGHTNINGS = "run_training_"
"""Beginning of the names of what contains the loops themselves, which end by a StopIteration of their own."""


class Watched:
    """A context in which a quiet end is an error.

    Args:
        of: who was called, for the message.
        context: what is entered.
    """

    __slots__ = ("context", "of")

    def __init__(self, of: str, context: Any) -> None:
        self.of, self.context = of, context

    def __enter__(self) -> Any:
        return self.context.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> Any:
        handled = self.context.__exit__(kind, error, trace)
        if error is not None and not handled and ends_quietly(error):
            raise RuntimeError(
                f"{self.of} raises {type(error).__name__}, by which a run would end as if it were done; to end a run, set "
                "trainer.should_stop = True in a callback"
            ) from error
        return handled


def watch(trainer: L.Trainer) -> None:
    """Have quiet ends raise, in everything that the Trainer calls."""
    profiler: Any = trainer.profiler  # pyrefly: ignore[missing-attribute]
    replace(profiler, "profile", in_hooks)
    replace(trainer._logger_connector, "log_metrics", in_loggers)
    replace(trainer.fit_loop.epoch_loop, "_save_loggers_on_train_batch_end", in_loggers)


def replace(owner: Any, name: str, watched: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put a watched method in a method's place, once."""
    if name not in vars(owner):
        setattr(owner, name, watched(getattr(owner, name)))


def in_hooks(profile: Callable[[str], Any]) -> Callable[[str], Any]:
    """A profiler's `profile`, which says what is called."""
    return lambda name: profile(name) if name.startswith(LIGHTNINGS) else Watched(name, profile(name))


def in_loggers(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls loggers."""

    def called(*args: Any, **kwargs: Any) -> Any:
        with Watched("a logger", nullcontext()):
            return function(*args, **kwargs)

    return called
