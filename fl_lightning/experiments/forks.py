"""How a run of a sweep begins where its prefix ended: noted in its folder by who plans it, done by the job that runs it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.run_folder import RunFolder, State
from fl_lightning.files.round_tables import own_folder
from fl_lightning.files.run_files import CLIENTS, LockedError, own_file, write_whole
from fl_lightning.files.sealed import DamagedError, sealed, unsealed

if TYPE_CHECKING:
    from fl_lightning.experiments.planned import Run

NOTE = "prefix.json"
"""In the folder of a run that begins with a prefix: which one, and after how many rounds."""

ALONGSIDE = ("flip_rates.jsonl", "accuracy_by_group.jsonl")
"""Files of a line per round, to which the run adds its own rounds."""

OF_THE_RULE = ("detection.jsonl",)
"""The same, where the prefix has the run's rule: what another one judged does not count for it."""


def note(run: Run) -> None:
    """Write down what a run begins with, or that it begins by itself."""
    file = own_file(run.folder.path / NOTE)
    if run.fork is None:
        file.unlink(missing_ok=True)
        return
    prefix = run.fork.run.folder.path
    entry = {"folder": os.path.relpath(prefix, run.folder.path), "id": prefix.name, "round": run.fork.round}
    entry |= {"exact": run.fork.exact, "rule": run.fork.rule}
    write_whole(file, json.dumps(sealed(entry), indent=1) + "\n")


def begin(folder: RunFolder) -> str:
    """Give a run that has no checkpoint yet the one that it begins with, if it begins with a prefix.

    Returns:
        What was done, in words; empty where nothing was to do.

    Raises:
        ConfigurationError: the prefix has not come to its end, or what it left cannot be used.
        LockedError: it is at work.
    """
    try:
        entry = unsealed(own_file(folder.path / NOTE))
    except DamagedError as error:
        raise DamagedError(f"{error}; the sweep's own command writes it anew") from error
    if not entry or folder.begun:
        return ""
    prefix = RunFolder(Path(os.path.normpath(folder.path / entry["folder"])))
    if not prefix.finished:
        state = prefix.state
        if state is State.RUNNING:
            raise LockedError(str(prefix.path))
        why = f" ({prefix.message})" if prefix.message else ""
        raise ConfigurationError(
            f"the prefix that this run begins with, {prefix.path}, is {state}{why}: see its log.txt; the sweep's next call "
            "tries it again"
        )
    done, due = prefix.record.get("rounds", entry["round"]), entry["round"]
    if done < due:
        why = prefix.record.get("reason") or "it was given fewer"
        raise ConfigurationError(
            f"the prefix that this run begins with, {prefix.path}, has ended after {done} of {due} rounds ({why:.200}); "
            f"give fewer prefix.rounds than {done}, or leave out what ends it"
        )
    return fork(folder, prefix, entry)


def fork(folder: RunFolder, prefix: RunFolder, entry: dict[str, Any]) -> str:
    """Make the first checkpoint of a run of what its prefix left; see `begin`."""
    # With torch, which only a run that is forked is worth.
    from fl_lightning.checkpoints import forking
    from fl_lightning.files.yaml_files import load_yaml

    about = {key: entry[key] for key in ("id", "round", "exact", "rule")}
    about["config_hash"] = prefix.record.get("config_hash")
    for name in (*ALONGSIDE, *(() if entry["rule"] else OF_THE_RULE)):
        if own_file(prefix.path / name).exists():
            shutil.copyfile(prefix.path / name, own_file(folder.path / name))
    if own_folder(prefix.path / CLIENTS).exists():
        shutil.copytree(prefix.path / CLIENTS, own_folder(folder.path / CLIENTS), dirs_exist_ok=True)  # it adds its own rounds
    try:
        forking.fork(prefix.path, folder.path, load_yaml(folder.config, str(folder.config)), about)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"the prefix that this run begins with cannot be used: {error}; delete {prefix.path}, and the sweep's next call "
            "runs it anew"
        ) from error
    memory = f"; the rule was {entry['rule']} until then, and the run's own begins without a memory" if entry["rule"] else ""
    return f"forked from {prefix.path} after round {entry['round']}{memory}"
