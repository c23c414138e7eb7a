"""A progress bar that counts rounds."""

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class RoundProgressBar(ProgressBar):
    """Rounds done, time left, and Acc and ASR of the last evaluation.

    Without a terminal, where a moving bar would be noise, each evaluation prints a line instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._progress: Progress | None = None

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._enabled:
            (self._progress.console.print if self._progress is not None else print)(*args)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        console = Console(file=sys.stderr)
        if not (self._enabled and trainer.is_global_zero and console.is_terminal):
            return
        self._progress = Progress(
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[scores]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._progress.start()
        total = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        self._task = self._progress.add_task("", total=total, completed=trainer.current_epoch, scores="")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=trainer.current_epoch + 1, scores=scores(trainer))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        quiet = trainer.sanity_checking or trainer.state.fn != "fit"
        if self._progress is not None:
            self._progress.update(self._task, scores=scores(trainer))
        elif self._enabled and trainer.is_global_zero and not quiet:
            total = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
            print(f"round {trainer.global_step}{total}: {scores(trainer)}", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()  # before anything is printed about the end of the run

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._stop()  # also after an error

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def scores(trainer: L.Trainer) -> str:
    """Acc and ASR of the last evaluation, as far as there are any."""
    found = ((name, trainer.callback_metrics.get(f"val/{name}")) for name in ("acc", "asr"))
    return "  ".join(f"{name} {float(value):.3f}" for name, value in found if value is not None)
