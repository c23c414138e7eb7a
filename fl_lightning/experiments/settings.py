"""The settings of a run: as arguments of a command, for one class wherever it is named, under another seed, as a name."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from fl_lightning.callbacks.run_record import experiment
from fl_lightning.configuration import build

INDECISIVE = (
    *(
        "accelerator",
        "strategy",
        "devices",
        "num_nodes",
        "plugins",
        "default_root_dir",
        "logger",
        "log_every_n_steps",
        "profiler",
    ),
    *("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "enable_autolog_hparams", "num_sanity_val_steps"),
    *("use_distributed_sampler", "model_registry", "barebones", "deterministic", "benchmark", "detect_anomaly"),
)
"""The Trainer's settings that do not decide what a run computes and measures."""

Layer = str | dict[str, Any]
"""A configuration file, or settings themselves."""


def arguments(layers: Sequence[Layer]) -> Iterator[str]:
    """The layers as arguments of a command."""
    for layer in layers:
        yield from ("--config", layer if isinstance(layer, str) else as_text(layer))


def as_text(config: Any) -> str:
    """Settings as a command's argument: YAML, which knows infinities, on one line."""
    return yaml.safe_dump(config, default_flow_style=True, width=math.inf, sort_keys=False)


def with_settings(node: Any, given: Mapping[str, Any]) -> Any:
    """A configuration with `given["<Class>.<setting>"]` as the setting of that class, at any depth."""
    if isinstance(node, list):
        return [with_settings(part, given) for part in node]
    if not isinstance(node, dict):
        return node
    node = {key: with_settings(part, given) for key, part in node.items()}
    for cls in named_classes({"class_path": node.get("class_path")}):
        for name, value in given.items():
            named, _, place = name.partition(".")
            if named == cls:
                node["init_args"] = with_value(node.get("init_args") or {}, place, value)
    return node


def with_value(settings: Mapping[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """
    >>> with_value({"a": {"b": 1, "c": 2}}, "a.b", 3)
    {'a': {'b': 3, 'c': 2}}
    """
    key, _, rest = dotted.partition(".")
    return {**settings, key: with_value(settings.get(key) or {}, rest, value) if rest else value}


def named_classes(node: Any) -> Iterator[str]:
    """The names, without modules, of all classes in a configuration."""
    if isinstance(node, list):
        for part in node:
            yield from named_classes(part)
    elif isinstance(node, dict):
        if isinstance(node.get("class_path"), str):
            yield node["class_path"].rpartition(".")[2]
        for part in node.values():
            yield from named_classes(part)


def with_seed(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """All settings with another seed; the command line links the same three places."""
    data = config["data"]
    if "seed" in data.get("init_args", {}):  # a data module of the user's own may draw nothing
        data = {**data, "init_args": {**data["init_args"], "seed": seed}}
    return {**config, "seed_everything": seed, "model": {**config["model"], "seed": seed}, "data": data}


def run_id(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of a SHA-256 over all settings that decide what a run computes and measures.

    Where data lie, how many ranks there are and what is logged where do not belong to it.
    """
    decisive = {key: value for key, value in config["trainer"].items() if key not in INDECISIVE}
    text = json.dumps([experiment(config), decisive], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def build_once(config: Mapping[str, Any]) -> None:
    """Make Trainer, model and data, so that values out of range are found before the first run; data are not read."""
    trainer = {
        **config["trainer"],
        "logger": False,
        "default_root_dir": None,
        "accelerator": "cpu",
        "devices": 1,
        "num_nodes": 1,
    }
    build(["fit", "--config", as_text({**config, "trainer": trainer})])
