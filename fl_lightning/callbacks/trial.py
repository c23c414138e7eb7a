"""A trial, `Trainer(fast_dev_run=...)`, shows whether a run would work, and writes nothing."""

import lightning as L


def is_trial(trainer: L.Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # pyrefly: ignore[missing-attribute]
