"""How a run that ends before its last round can go on: what is said to its user has to be true."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer

from fl_lightning.checkpoints.newest import newest


def how_to_go_on(trainer: Trainer | None, *, after_the_round: bool = False) -> str:
    """What to do, in words that follow a semicolon.

    Args:
        trainer: of the run; None where it is not known.
        after_the_round: whether the round that is under way still ends, and with it whatever is written then.
    """
    if trainer is None:
        return "go on with --ckpt_path last if there is a checkpoint"
    keepers = trainer.checkpoint_callbacks
    if not keepers:
        return "no checkpoint is written, as checkpoints are off, so that the run begins again with its first round"
    if newest(Path(trainer.default_root_dir)) or (after_the_round and any(ends_with_checkpoint(one) for one in keepers)):
        return "go on with --ckpt_path last"
    for keeper in keepers:  # Lightning's own, which have files of their own names
        path = getattr(keeper, "last_model_path", "") or getattr(keeper, "best_model_path", "")
        if path:
            return f"go on with ckpt_path={path}"
    return "there is no checkpoint yet, so that the run begins again as it was started"


def ends_with_checkpoint(callback: object) -> bool:
    """Whether a callback writes one at the end of the round that SIGTERM ends, as `LastCheckpoint` does."""
    return getattr(callback, "writes_on_sigterm", False)
