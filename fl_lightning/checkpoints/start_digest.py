"""The digest of the weights that a run starts from, which stands for their path in what an experiment is known by."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path

from fl_lightning.checkpoints.newest import START_FROM, checkpoint_of
from fl_lightning.errors import ConfigurationError
from fl_lightning.files.cache import keep, kept

KIND = "weights"
"""What is kept: from the digest of a file to that of the weights in it."""


def start_sha256(path: str | os.PathLike[str]) -> str:
    """The digest of the weights that a run would start from, by which its configuration is known, wherever they lie.

    The file is read anew in each process; torch is needed for one that has not been seen before.

    Raises:
        ConfigurationError: as `read_weights`.
    """
    try:
        file = checkpoint_of(Path(path))
        about = file.stat()
    except ConfigurationError as error:
        raise ConfigurationError(f"{START_FROM}: {error}") from error
    return _sha256(str(path), str(file), about.st_ino, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=64)  # the runs of a sweep ask for the same files again and again
def _sha256(path: str, file: str, *_: int) -> str:
    of_file = file_sha256(file)
    found = kept(KIND, of_file)
    if not isinstance(found, str):
        # With torch.
        from fl_lightning.checkpoints.warm_start import read_weights
        from fl_lightning.modules.bits import tensors_sha256

        found = tensors_sha256(read_weights(path))
        keep(KIND, of_file, found)
    return found


def file_sha256(file: str) -> str:
    """Of the bytes in a file; empty where it cannot be read, which whoever reads it in earnest says."""
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return ""
