"""What this machine allows: folders that can be written, and how many processes it takes."""

import os
from pathlib import Path

from fl_lightning.errors import ConfigurationError
from fl_lightning.options.layers import shortened


def check_folder(folder: str | Path, name: str) -> None:
    """Raise unless a folder can be written to, or made, without making it.

    Args:
        folder: on this machine; Lightning would take others, but a run's record is written by name.
        name: of the setting.
    """
    if "://" in str(folder) or "::" in str(folder) or "\0" in str(folder):
        raise ConfigurationError(f"{name} = {folder!s}: must be a folder of this machine, without '::' or '://' in its name")
    path = Path(folder).absolute()
    try:
        there = next(parent for parent in (path, *path.parents) if parent.exists())
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be made: {error.strerror}: {shortened(str(folder))}") from error
    if not there.is_dir():
        raise ConfigurationError(f"{name} cannot be made: {shortened(str(folder))} is no folder, and {there} is in its place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{name} cannot be written: there is no permission to write into {there}; give another folder")


def most_processes() -> int:
    """How many a machine may be asked for: far more than it can do well, and fewer than bring it down."""
    return max(64, 8 * (os.cpu_count() or 1))
