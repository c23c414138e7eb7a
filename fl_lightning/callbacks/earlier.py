"""A run that starts in the folder of another puts aside what that one left, all of it."""

import json
from itertools import count
from pathlib import Path
from typing import Any

from fl_lightning.callbacks.flip_rates import FILE

EARLIER = "earlier"
"""Folder in a run's folder, with one folder per run that was put aside: 1, 2, ..."""

CHECKPOINTS = ("last*.ckpt", "last*.ckpt.*", "previous.ckpt", "previous.ckpt.*")
"""Checkpoints and what lies beside them; other files of that kind are the user's."""

RECORDS = ("run.json", "metrics.jsonl", "config.yaml", FILE)


def put_aside(folder: Path, config_hash: str) -> str:
    """Move what an earlier run left in a folder into one of its own there.

    What a run of the same configuration left that never got to its first checkpoint comes again bit for bit, and is replaced.

    Returns:
        What was done, in words; empty where nothing had to be.
    """
    checkpoints = sorted({path for pattern in CHECKPOINTS for path in folder.glob(pattern)})
    record = read(folder / "run.json")
    over = record.get("state", "running") in ("finished", "stopped") or record.get("finished")
    same = record.get("config_hash", config_hash) == config_hash
    if not checkpoints and not over and same:
        return ""
    into = next(path for k in count(1) if not (path := folder / EARLIER / str(k)).exists())
    into.mkdir(parents=True)
    for path in [*(folder / name for name in RECORDS), *checkpoints]:
        if path.exists():
            path.replace(into / path.name)
    what = f"{record.get('rounds', '?')} rounds, {record.get('state') or ('finished' if over else 'unfinished')}"
    return f"What an earlier run left in {folder} ({what}) is kept in {into}; --ckpt_path last goes on with a run."


def read(path: Path) -> dict[str, Any]:
    """A run's record; of one that cannot be read nothing is known but that it is another's."""
    try:
        record = json.loads(path.read_text())
        return record if isinstance(record, dict) else {"config_hash": None}
    except FileNotFoundError:
        return {}
    except ValueError:
        return {"config_hash": None}
