"""A run that starts in the folder of another puts aside what that one left, all of it."""

import json
import logging
from itertools import count
from pathlib import Path
from typing import Any

import lightning as L

from fl_lightning.callbacks.flip_rates import FILE

log = logging.getLogger(__name__)

EARLIER = "earlier"
"""Folder in a run's folder, with one folder per run that was put aside: 1, 2, ..."""

CHECKPOINTS = ("last*.ckpt", "last*.ckpt.*", "previous.ckpt", "previous.ckpt.*", "damaged.ckpt")
"""Checkpoints and what lies beside them; other files of that kind are the user's."""

RECORDS = ("run.json", "metrics.jsonl", "config.yaml", FILE)


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
    path = trainer.ckpt_path
    if not trainer.global_step:
        return False
    return path is None or Path(path).resolve().is_relative_to(folder.resolve())


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
    for path in [*(folder / name for name in RECORDS), *checkpoints]:
        if path.exists():
            path.replace(into / path.name)
    what = f"{record.get('rounds', '?')} rounds, {record.get('state') or ('finished' if over else 'unfinished')}"
    instead = "; --ckpt_path last goes on with a run instead" if checkpoints else ""
    return f"What an earlier run left in {folder} ({what}) is kept in {into}{instead}."


def read(path: Path) -> dict[str, Any]:
    """A run's record; of one that cannot be read nothing is known but that it is another's."""
    try:
        record = json.loads(path.read_text())
        return record if isinstance(record, dict) else {"config_hash": None}
    except FileNotFoundError:
        return {}
    except ValueError:
        return {"config_hash": None}
