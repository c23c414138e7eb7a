"""Keep one checkpoint to resume from."""

import os
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from fl_lightning import sharded_state
from fl_lightning.callbacks.earlier import make_room
from fl_lightning.callbacks.trial import is_trial
from fl_lightning.errors import ConfigurationError
from fl_lightning.federation import Federation
from fl_lightning.last_round import is_last


class LastCheckpoint(ModelCheckpoint):
    """Writes `last.ckpt` into the run's folder at the end of every n-th round and of the last one.

    The file is replaced in one step, so a run that is killed at any moment leaves a whole checkpoint; `--ckpt_path last`
    resumes from it, on any number of ranks.

    Args:
        every_n_rounds: rounds between checkpoints, at least 1.
    """

    def __init__(self, *, every_n_rounds: int = 1) -> None:
        if every_n_rounds < 1:
            raise ConfigurationError(f"checkpoint.every_n_rounds must be at least 1, got {every_n_rounds}")
        super().__init__(
            filename=self.CHECKPOINT_NAME_LAST,
            every_n_epochs=every_n_rounds,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.dirpath = trainer.default_root_dir
        super().setup(trainer, pl_module, stage)

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        # Lightning resolves ckpt_path="last" before setup(), so before `dirpath` is known.
        self.dirpath = trainer.default_root_dir
        return super()._find_last_checkpoints(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero and not is_trial(trainer):
            make_room(trainer, None)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Federation)
        pl_module.evaluations.close(trainer)  # so that the last checkpoint has the last evaluation
        super().on_train_epoch_end(trainer, pl_module)
        if is_last(trainer) and not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        # Lightning moves a temporary file from elsewhere into place, which is a copy if that is another file system.
        part = f"{filepath}{sharded_state.TEMPORARY}"
        super()._save_checkpoint(trainer, part)
        if trainer.is_global_zero:
            os.replace(part, filepath)
            sharded_state.forget_others(filepath, trainer.global_step)
        self._last_checkpoint_saved = filepath

    # Which files were best or last before a resume does not matter: there is one, and it is replaced.

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass
