"""The last round is evaluated whatever `check_val_every_n_epoch` says: what a run ended with is what its record tells."""

from __future__ import annotations

import lightning as L


class Evaluations:
    """Which round was evaluated last.

    Attributes:
        round: rounds done at the last evaluation, -1 before the first.
        closing: whether the evaluation under way is one that Lightning's schedule left out. A run that goes on after all
            would never have had it.
    """

    def __init__(self) -> None:
        self.round = -1
        self.closing = False

    def close(self, trainer: L.Trainer) -> None:
        """Evaluate the last round unless that has been done.

        To be called on all ranks alike, between a round's batch and the next one, as often as one likes.
        """
        if not is_last(trainer) or self.round == trainer.global_step or not trainer.enable_validation:
            return
        self.closing = True
        trainer.validating = True  # as Lightning's own loop does it
        try:
            trainer.fit_loop.epoch_loop.val_loop.run()
        finally:
            trainer.training = True
            self.closing = False


def is_last(trainer: L.Trainer) -> bool:
    """Whether no round follows the one that is done.

    Lightning's own `fit_loop.done` counts on as it is asked, and prints.
    """
    if all_rounds_done(trainer) or 0 <= trainer.max_steps <= trainer.global_step:
        return True
    return trainer.should_stop and bool(trainer.fit_loop._can_stop_early)


def all_rounds_done(trainer: L.Trainer) -> bool:
    """Whether `max_epochs` rounds are done; without that limit they never are."""
    done = trainer.fit_loop.epoch_progress.current.processed  # pyrefly: ignore[missing-attribute]
    return trainer.max_epochs is not None and 0 <= trainer.max_epochs <= done
