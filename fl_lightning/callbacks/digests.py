"""Digests by which two runs are known to be of one experiment, and to have ended with the same bits.

Sweeps and reports read settings by them, without torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

LATER = ("server_scheduler", "start_from", "attackers", "attackers_optimizer", "attackers_scheduler")
"""Settings of `model` that earlier versions did not have; left out, the experiment is that of their records."""

LATER_OF_ATTACKS: dict[str, Any] = {"per_batch": False}
"""The same of attacks' settings, with the values that stand for what was before."""

LATER_OF_CLASS: dict[str, dict[str, Any]] = {
    "PixelTrigger": {"target_mode": "all_to_one", "source_label": None},
    "ALIE": {"biased": False},
    "Neurotoxin": {"by": "last_step", "per_layer": False},
    "PGD": {"epochs": None},
    "DBA": {"target_mode": "all_to_one", "source_label": None},
    "CNN": {"kernel_size": 3},
    "Twitter": {"by_user": True, "train_split": "train", "test": "held_out"},
}
"""The same of single classes of the package."""

SELDOM = 10
"""The cohort's default `interval` for participation `fixed_frequency`, as records have had it."""

LONGEST = 120
"""Letters of a setting's value in a message."""


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a module's parameters and buffers."""
    from fl_lightning.modules.bits import named_sha256  # with torch, which whoever has a module has imported

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
        chosen["data"] = without_later(without(chosen["data"], "path"))
    if isinstance(chosen.get("model"), dict):  # neither what changes no bit, nor where attackers' data lie
        model = chosen["model"] = {k: v for k, v in chosen["model"].items() if k not in ("compile_rules", "bucket_bytes")}
        for name in LATER:
            if model.get(name) is None:
                model.pop(name, None)
        if "start_from" in model and start is not None:
            model["start_from"] = start
        if "aggregator" in model:  # verdicts change no bit
            model["aggregator"] = plain_noise(without_verdicts(model["aggregator"]))
        if "attacks" in model:
            model["attacks"] = [without_later(attack, LATER_OF_ATTACKS) for attack in without(model["attacks"], "path")]
        if "client" in model:
            model["client"] = without_later(model["client"])
        if isinstance(model.get("attackers"), dict):
            model["attackers"] = {
                key: value for key, value in model["attackers"].items() if key not in ("branches", "executor")
            }
        if isinstance(model.get("local"), dict):
            same = ("branches",) if model["local"].get("executor") == "stacked" else ("branches", "executor")
            model["local"] = {key: value for key, value in model["local"].items() if key not in same}
        if isinstance(model.get("cohort"), dict) and "participation" in model["cohort"]:
            model["cohort"] = with_interval(model["cohort"])
            if rounds:  # a digest, which is that of records of before there was a window
                model["cohort"] = with_every(model["cohort"])
    if prefix is not None:
        chosen["prefix"] = prefix
    if rounds and "trainer" in config:
        chosen["max_epochs"] = config["trainer"].get("max_epochs")
    return chosen


def with_interval(cohort: Mapping[str, Any]) -> dict[str, Any]:
    """A cohort's settings with `interval` where an earlier version has `every`, and without what only repeats the defaults."""
    often = {"fixed_frequency": SELDOM}.get(cohort["participation"], 1)
    found = {key: value for key, value in cohort.items() if key != "every"}
    if "every" in cohort and cohort["participation"] == "fixed_frequency":
        found["interval"] = cohort["every"]
    defaults = {"interval": (None, often), "end_round": (None,), "after": ("benign",)}
    return {key: value for key, value in found.items() if value not in defaults.get(key, ())}


def with_every(cohort: Mapping[str, Any]) -> dict[str, Any]:
    """What `with_interval` gives, in the words of before: `every` stood there always, and meant something for one kind."""
    if cohort["participation"] != "fixed_frequency":
        return {**cohort, "every": SELDOM}
    return {**{key: value for key, value in cohort.items() if key != "interval"}, "every": cohort.get("interval", SELDOM)}


def without(value: Any, name: str) -> Any:
    """The value without entries called so, at any depth."""
    if isinstance(value, Mapping):
        return {key: without(entry, name) for key, entry in value.items() if key != name}
    if isinstance(value, (list, tuple)):
        return [without(entry, name) for entry in value]
    return value


def without_verdicts(value: Any) -> Any:
    """A rule's settings without `verdicts`, at any depth; one that has no others has none, as before there were verdicts.

    >>> without_verdicts({"class_path": "Median", "init_args": {"verdicts": False}})
    {'class_path': 'Median'}
    """
    if not isinstance(value, Mapping):
        return value
    kept = {key: without_verdicts(entry) for key, entry in value.items() if key != "verdicts"}
    return {key: entry for key, entry in kept.items() if entry != {} or value[key] == {}}


def plain_noise(value: Any) -> Any:
    """A rule's settings in which `Noise` has no `class_path`, as records of before other inputs could be named.

    >>> plain_noise({"ood": {"class_path": "fl_lightning.data.Noise", "init_args": {"samples": 8}}})
    {'ood': {'samples': 8}}
    """
    if not isinstance(value, Mapping):
        return value
    if value.get("class_path") in ("fl_lightning.data.Noise", "fl_lightning.data.probe.Noise"):
        return value.get("init_args", {})
    return {key: plain_noise(entry) for key, entry in value.items()}


def without_later(part: Any, later: Mapping[str, Any] = {}) -> Any:
    """The settings of an object without those that earlier versions did not have and that say nothing new.

    Args:
        part: `class_path` and `init_args`.
        later: such settings of any class, beside those in `LATER_OF_CLASS`; a user's own class may have others of these names.

    Example:
        >>> without_later({"class_path": "ALIE", "init_args": {"z": 1.0, "biased": False}})
        {'class_path': 'ALIE', 'init_args': {'z': 1.0}}
    """
    if not isinstance(part, dict) or not isinstance(part.get("init_args"), dict):
        return part
    place, _, name = str(part.get("class_path")).rpartition(".")
    ours = not place or place.startswith("fl_lightning.")
    gone = {**later, **(LATER_OF_CLASS.get(name, {}) if ours else {})}
    kept = {k: v for k, v in part["init_args"].items() if k not in gone or v != gone[k]}
    return {**part, "init_args": kept}


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
