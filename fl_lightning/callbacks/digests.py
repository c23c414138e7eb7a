"""Digests by which two runs are known to be of one experiment, and to have ended with the same bits."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from fl_lightning.modules.bits import named_sha256

LONGEST = 120
"""Letters of a setting's value in a message."""


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a module's parameters and buffers."""
    return named_sha256(module.state_dict().items())


def config_sha256(config: Mapping[str, Any], **weights: Any) -> str:
    """SHA-256 of what defines the experiment: see `experiment`."""
    return hashlib.sha256(json.dumps(experiment(config, **weights), sort_keys=True, default=str).encode()).hexdigest()


def experiment(
    config: Mapping[str, Any], *, rounds: bool = True, start: str | None = None, prefix: str | None = None
) -> dict[str, Any]:
    """The part of a configuration that decides the numbers: not where data lie, not how many ranks, not what is logged.

    Args:
        config: a resolved configuration.
        rounds: whether the number of rounds belongs to it; a resumed run may be made longer.
        start: the digest of the weights in `model.start_from`, which stands for their path.
        prefix: the `config_hash` of the run that this one was forked from, where that had other settings.
    """
    chosen = {key: value for key, value in config.items() if key in ("seed_everything", "model", "data")}
    if "data" in chosen:
        chosen["data"] = without_paths(chosen["data"])
    if isinstance(chosen.get("model"), dict):  # neither what changes no bit, nor where attackers' data lie
        model = chosen["model"] = {k: v for k, v in chosen["model"].items() if k not in ("compile_rules", "bucket_bytes")}
        for name in ("server_scheduler", "start_from"):  # as in records of before there were any
            if model.get(name) is None:
                model.pop(name, None)
        if "start_from" in model and start is not None:
            model["start_from"] = start
        if "attacks" in model:
            model["attacks"] = without_paths(model["attacks"])
        if isinstance(model.get("local"), dict):
            same = ("branches",) if model["local"].get("executor") == "stacked" else ("branches", "executor")
            model["local"] = {key: value for key, value in model["local"].items() if key not in same}
    if prefix is not None:
        chosen["prefix"] = prefix
    if rounds and "trainer" in config:
        chosen["max_epochs"] = config["trainer"].get("max_epochs")
    return chosen


def without_paths(value: Any) -> Any:
    """The value without entries called `path`, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_paths(entry) for key, entry in value.items() if key != "path"}
    if isinstance(value, (list, tuple)):
        return [without_paths(entry) for entry in value]
    return value


def compare(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """Each setting in which two configurations differ, in words."""
    for setting, one, other in differing(there, here, name):
        yield f"{setting} is {one!r:.{LONGEST}} there and {other!r:.{LONGEST}} here"


def differing(there: Any, here: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each setting in which two configurations differ, and its two values."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in sorted({*there, *here}):
            yield from differing(there.get(key), here.get(key), f"{name}.{key}" if name else str(key))
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for i, (one, other) in enumerate(zip(there, here, strict=True)):
            yield from differing(one, other, f"{name}[{i}]")
    elif there != here:
        yield name, there, here
