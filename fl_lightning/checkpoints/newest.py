"""Where a run's checkpoints lie, and which is the newest: known by their names alone, without torch."""

from pathlib import Path

from fl_lightning.errors import ConfigurationError

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"

START_FROM = "model.start_from"
"""The setting that names a checkpoint to start from, for messages."""


def newest(folder: Path) -> Path | None:
    """The newest checkpoint of a run; `previous.ckpt` is that only where a kill or a person took `last.ckpt` away."""
    return next((folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()), None)


def checkpoint_of(path: Path) -> Path:
    """The checkpoint that a path stands for: itself, or the newest in the run's folder, which may be given by a file in it."""
    try:
        folder = path if path.is_dir() else path.parent if path.name in ("config.yaml", "run.json") else None
        file = path if folder is None else newest(folder)
        there = file is not None and file.is_file()
    except OSError as error:  # a name of thousands of letters
        raise ConfigurationError(f"{str(path)[:60]}...: {error.strerror}; give the folder of a run, such as runs/x") from error
    if file is None or not there:
        where = f"there is no {LAST} in {folder}" if folder is not None else f"there is no file {path}"
        raise ConfigurationError(f"{where}; give the folder of a run, or a checkpoint such as runs/x/{LAST}")
    return file
