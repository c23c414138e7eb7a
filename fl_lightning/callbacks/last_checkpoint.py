"""Keep two checkpoints to resume from."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from fl_lightning.callbacks.earlier import make_room, prepare
from fl_lightning.callbacks.trial import is_trial
from fl_lightning.checked import Checked
from fl_lightning.checkpoints.newest import newest
from fl_lightning.checkpoints.resuming import CheckpointFiles, Pair
from fl_lightning.errors import ConfigurationError
from fl_lightning.federation import Federation
from fl_lightning.files.replacing import PART
from fl_lightning.machine.strategy import FederatedStrategy
from fl_lightning.server.last_round import is_last

log = logging.getLogger(__name__)


class LastCheckpoint(Checked, ModelCheckpoint):
    """Writes `last.ckpt` into the run's folder at the end of every n-th round, of the last one, and of one that SIGTERM ends.

    SIGTERM gives up a round that does not end soon, so one is also written after a round of more than five seconds.

    The file is replaced in one step, so a run that is killed at any moment leaves a whole checkpoint; `--ckpt_path last`
    resumes from it, on any number of ranks. The one before stays as `previous.ckpt`, for a disk that damages the last.

    Args:
        every_n_rounds: rounds between checkpoints, at least 1.
    """

    writes_on_sigterm = True

    def __init__(self, *, every_n_rounds: int = 1) -> None:
        if every_n_rounds < 1:
            raise ConfigurationError(f"checkpoint.every_n_rounds must be at least 1, got {every_n_rounds}")
        super().__init__(
            filename=self.CHECKPOINT_NAME_LAST,
            every_n_epochs=every_n_rounds,
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
        self.every_n_rounds = every_n_rounds
        self.pair: Pair | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.dirpath = trainer.default_root_dir
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # of a strategy that is not the federation's
            trainer.strategy.checkpoint_io = CheckpointFiles()
        if isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO):
            raise ConfigurationError(
                "trainer.plugins has AsyncCheckpointIO, which writes a checkpoint after the round that it is of; leave it out: "
                "last.ckpt must be there when a round ends"
            )
        super().setup(trainer, pl_module, stage)

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        found = newest(Path(trainer.default_root_dir))
        if found is not None and found.name != f"{self.CHECKPOINT_NAME_LAST}.ckpt":
            log.warning("there is no last.ckpt in %s; the one before it, %s, is taken", trainer.default_root_dir, found.name)
        return set() if found is None else {str(found)}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero and not is_trial(trainer):
            prepare(folder)  # by now the run record has seen that nobody else trains there
            make_room(trainer, None)
        if self.pair is None or trainer.ckpt_path is not None or not trainer.global_step:
            resumed = None if trainer.ckpt_path is None else Path(trainer.ckpt_path)
            self.pair = Pair(folder, resumed, trainer.global_step)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Federation)
        pl_module.evaluations.close(trainer)  # so that the last checkpoint has the last evaluation
        super().on_train_epoch_end(trainer, pl_module)
        long = isinstance(trainer.strategy, FederatedStrategy) and trainer.strategy.long_round
        if (long or is_last(trainer) or trainer.received_sigterm) and not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, f"{filepath}{PART}")
        if trainer.is_global_zero:
            assert self.pair is not None, "checkpoints are written in training"
            self.pair.replace(Path(f"{filepath}{PART}"), trainer.global_step)
        self._last_checkpoint_saved = filepath

    # Which files were best or last before a resume does not matter: the last one is replaced, and that is kept.

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass
