"""A run that goes on where another one stopped, with settings of its own: its first checkpoint is made of that one's last.

Weights, buffers, the server's optimizer, counters and evaluations are the other run's. Attacks begin afresh, and so does what
the rule remembers if it is another rule.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_lightning.attacks.base import Attack
from fl_lightning.checkpoints import checkpoint_files, resuming, sharded_state
from fl_lightning.checkpoints.newest import LAST
from fl_lightning.checkpoints.trained import read_checkpoint
from fl_lightning.errors import ConfigurationError

AFRESH = None
"""What a forked checkpoint has in place of the attacks' states."""


def fork(source: Path, folder: Path, config: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a run's first checkpoint, from which it goes on as from any of its own.

    Args:
        source: the folder of the run that it is forked from, which has come to its end.
        folder: of the run, without a checkpoint; killed at any moment, this leaves none or a whole one.
        config: the run's.
        about: what its record is to say of the other one: its `round`, the `config_hash` in its own record, and its `rule`
            where the run has another.

    Raises:
        ConfigurationError: the other run's checkpoint is missing, damaged, of another round, or not that run's.
        StorageError: there is no room.
    """
    last, done = source / LAST, int(about["round"])
    if not last.exists():
        raise ConfigurationError(f"there is no {LAST} in {source}")
    resuming.examine(last)
    checkpoint = read_checkpoint(last)
    if checkpoint["global_step"] != done:
        raise ConfigurationError(f"{last} is of round {checkpoint['global_step']}, not {done}: the run ended before its last")
    checkpoint["federation"]["attacks"] = AFRESH
    for key, state in checkpoint["callbacks"].items():
        if key.startswith("RunRecord"):
            if state.pop("config_hash", about["config_hash"]) != about["config_hash"]:
                raise ConfigurationError(f"{last} is of another run than the run.json beside it")
            state |= {"config": dict(config), "prefix": dict(about)}
    if about.get("rule") is not None:
        checkpoint.pop(sharded_state.KEY, None)
        for key in [key for key in checkpoint["callbacks"] if key.startswith("DetectionMetrics")]:
            del checkpoint["callbacks"][key]  # what the other rule judged does not count for this one
    elif "world" in (entry := checkpoint.get(sharded_state.KEY, {})):
        shutil.copytree(source / entry["folder"], folder / entry["folder"], dirs_exist_ok=True)
    checkpoint_files.save(checkpoint, folder / LAST, done)


def settle(checkpoint: dict[str, Any], own: Mapping[str, Any], attacks: Sequence[Attack]) -> None:
    """Give a forked checkpoint what this run has and the other one had not; nothing is done to any other checkpoint.

    Args:
        checkpoint: as it was loaded.
        own: the federation's `state_dict`, as it was made.
        attacks: its attacks, which begin.
    """
    if checkpoint["federation"]["attacks"] is AFRESH:
        checkpoint["federation"]["attacks"] = [attack.state_dict() for attack in attacks]
        there = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: there.get(name, value) for name, value in own.items()}
