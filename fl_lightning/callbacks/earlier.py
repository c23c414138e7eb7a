"""A run that starts in the folder of another puts aside what that one left, all of it."""

import logging
from itertools import count
from pathlib import Path
from typing import Any

import lightning as L

from fl_lightning.callbacks.accuracy_by_group import FILE as GROUPS_FILE
from fl_lightning.callbacks.detections import DETECTION_FILE
from fl_lightning.callbacks.flip_rates import FILE
from fl_lightning.checkpoints.newest import LAST, PREVIOUS
from fl_lightning.checkpoints.resuming import clear
from fl_lightning.checkpoints.sharded_state import shards_of
from fl_lightning.errors import ConfigurationError
from fl_lightning.files.regular_files import check_regular
from fl_lightning.files.run_files import CLIENTS, EARLIER
from fl_lightning.files.sealed import DamagedError, unsealed

log = logging.getLogger(__name__)

CHECKPOINTS = ("last*.ckpt", "last*.ckpt.*", "previous.ckpt", "previous.ckpt.*", "damaged.ckpt")
"""Checkpoints and what lies beside them; other files of that kind are the user's."""

RECORDS = ("run.json", "metrics.jsonl", "config.yaml", FILE, DETECTION_FILE, GROUPS_FILE)


def prepare(folder: Path) -> None:
    """See that a run can have its files in a folder that it has to itself, and delete what killed ones had not finished.

    Raises:
        ConfigurationError: something else is in the place of one of them.
    """
    check_places(folder)
    clear(folder, (*RECORDS, LAST, PREVIOUS))


def make_room(trainer: L.Trainer, config_hash: str | None) -> None:
    """Put aside what is in the Trainer's folder, unless the run goes on with it.

    Args:
        trainer: as it begins to train; on rank 0.
        config_hash: of this run; None where nothing is known of it.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder = Path(trainer.default_root_dir)
    if not goes_on(trainer, folder) and (done := put_aside(folder, config_hash)):
        log.warning(done)


def goes_on(trainer: L.Trainer, folder: Path) -> bool:
    """Whether what is in the folder is of this very run: it began in this process, or its checkpoint lies there."""
    if not trainer.global_step:
        return False
    if trainer.ckpt_path is None:
        return True
    # The folder's checkpoint may be a link to one elsewhere, and a link elsewhere be to this one.
    path, own = Path(trainer.ckpt_path), folder.resolve()
    places = (path.parent.resolve(), path.resolve().parent)
    return any(place.is_relative_to(own) and not place.is_relative_to(own / EARLIER) for place in places)


def put_aside(folder: Path, config_hash: str | None) -> str:
    """Move what an earlier run left in a folder into one of its own there.

    What a run of the same configuration left that never got to its first checkpoint comes again bit for bit, and is replaced.

    Returns:
        What was done, in words; empty where nothing had to be.
    """
    checkpoints = sorted({path for pattern in CHECKPOINTS for path in folder.glob(pattern)})
    record = read(folder / "run.json")
    over = record.get("state", "running") in ("finished", "stopped") or record.get("finished")
    same = config_hash is None or record.get("config_hash", config_hash) == config_hash
    if not checkpoints and not over and same:
        return ""
    into = next(path for k in count(1) if not (path := folder / EARLIER / str(k)).exists())
    into.mkdir(parents=True)
    for path in [*(folder / name for name in (*RECORDS, CLIENTS)), *checkpoints]:
        if path.exists():
            move(path, into / path.name)
    what = f"{record.get('rounds', '?')} rounds, {record.get('state') or ('finished' if over else 'unfinished')}"
    instead = "; --ckpt_path last goes on with a run instead" if checkpoints else ""
    return f"What an earlier run left in {folder} ({what}) is kept in {into}{instead}."


def read(path: Path) -> dict[str, Any]:
    """A run's record; of one that is damaged nothing is known but that it is another's."""
    try:
        return unsealed(path)
    except DamagedError:
        return {"config_hash": None}


def check_places(folder: Path) -> None:
    """Raise `ConfigurationError` where something else is in the place of a run's file or folder."""
    for name in (*RECORDS, LAST, PREVIOUS):
        check_regular(folder / name)
    for beside in (shards_of(folder / LAST), folder / CLIENTS):
        if beside.exists() and not beside.is_dir():
            raise ConfigurationError(
                f"{beside} is no folder, and a run may make one of that name: move away what is in its place"
            )


def move(path: Path, to: Path) -> None:
    """Give a file another place; a link still leads where it led."""
    if path.is_symlink():
        to.symlink_to(path.resolve())
        path.unlink()
    else:
        path.replace(to)
