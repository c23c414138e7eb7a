"""A file of a callback's own in the run's folder, with a line per round."""

from pathlib import Path
from typing import Any

import lightning as L

from fl_lightning.errors import ConfigurationError
from fl_lightning.files.run_files import RoundLines


def open_lines(callback: L.Callback, trainer: L.Trainer, name: str, kept: dict[str, Any]) -> RoundLines:
    """Open it as the first round of a fit begins, on rank 0.

    Args:
        callback: whose file it is.
        trainer: in whose folder it lies.
        name: of the file.
        kept: the file as it was at the checkpoint that the run goes on from.

    Raises:
        ConfigurationError: it cannot be written.
    """
    path = Path(trainer.default_root_dir) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return RoundLines(path, afresh=trainer.global_step == 0, kept=kept)
    except OSError as error:
        raise ConfigurationError(
            f"trainer.default_root_dir: {type(callback).__name__} cannot write {path}: {error}; give a folder that can be "
            "written"
        ) from error
