"""How a run ended, and why: what is over, what may go on, and what went wrong are not the same."""

from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities.exceptions import SIGTERMException

from fl_lightning.errors import folded, noted
from fl_lightning.last_round import all_rounds_done


@dataclass(frozen=True)
class Ending:
    """The state of a run.

    Attributes:
        state: `finished`: all rounds are done, or a stopping callback found that it is enough. `stopped`: something else ended
            the run in good order, such as `max_time`; it can go on. `interrupted`: somebody ended it. `failed`: an error did.
            `running` until then, and for ever where the process was killed.
        reason: what ended it, on one line.
    """

    state: Literal["running", "finished", "stopped", "interrupted", "failed"]
    reason: str = ""


RUNNING = Ending("running")


def ending(trainer: L.Trainer, began: int) -> Ending:
    """How a `Trainer.fit` ended that returned.

    Args:
        trainer: after its last round.
        began: the rounds that were done when it began; what a callback found before is no reason now.
    """
    rounds = trainer.global_step
    if not rounds:
        return Ending("stopped", "max_time was over before the first round" if spent(trainer) else "no round was done")
    if all_rounds_done(trainer):
        return Ending("finished", f"all {trainer.max_epochs} rounds are done")
    if 0 <= trainer.max_steps <= rounds:
        return Ending("finished", f"all {trainer.max_steps} rounds of max_steps are done")
    for callback in trainer.callbacks:  # pyrefly: ignore[missing-attribute]
        if not isinstance(callback, EarlyStopping) or callback.stopped_epoch < began:
            continue
        if callback.stopping_reason is not EarlyStoppingReason.NOT_STOPPED:
            said = folded(callback.stopping_reason_message or "").removesuffix(" Signaling Trainer to stop.")
            return Ending("finished", f"{type(callback).__name__} after round {rounds}: {said}")
    if spent(trainer):
        return Ending("stopped", f"max_time was over after round {rounds}")
    return Ending("finished", f"a callback set trainer.should_stop in round {rounds}")


def broken_off(exception: BaseException, rounds: int) -> Ending:
    """How a `Trainer.fit` ended that raised an exception with `rounds` rounds done."""
    if isinstance(exception, (KeyboardInterrupt, SIGTERMException)):
        name = "Ctrl-C" if isinstance(exception, KeyboardInterrupt) else "SIGTERM"
        return Ending("interrupted", f"{name} after round {rounds}")
    said = ", ".join(filter(None, (folded(exception), noted(exception))))
    return Ending("failed", f"{type(exception).__name__} after round {rounds}: {said}")


def spent(trainer: L.Trainer) -> list[Timer]:
    """The timers, such as that of `max_time`, whose time is over."""
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # pyrefly: ignore[missing-attribute]
    return [timer for timer in timers if (left := timer.time_remaining()) is not None and left <= 0]


def renew_time(trainer: L.Trainer, checkpoint: dict[str, Any]) -> bool:
    """Let a run go on whose `max_time` was over when the checkpoint was written: it gets the time anew.

    Lightning counts it over all starts, so that such a run would stop for ever before its next round.

    Returns:
        Whether there was such a timer.
    """
    states, found = checkpoint.get("callbacks", {}), False
    for timer in trainer.callbacks:  # pyrefly: ignore[missing-attribute]
        if isinstance(timer, Timer) and timer._duration is not None and timer.state_key in states:
            elapsed = states[timer.state_key].get("time_elapsed", {}).get("train", 0.0)
            if elapsed >= timer._duration:
                del states[timer.state_key]
                found = True
    return found
