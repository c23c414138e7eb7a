"""The settings of a run: as arguments of a command, under another seed, as a name."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fl_lightning.callbacks.digests import experiment
from fl_lightning.checkpoints.start_digest import start_sha256
from fl_lightning.errors import ConfigurationError
from fl_lightning.files.yaml_files import as_argument

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
        yield from ("--config", layer if isinstance(layer, str) else as_argument(layer))


def with_seed(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """All settings with another seed; the command line links the same three places."""
    data = config["data"]
    if "seed" in data.get("init_args", {}):  # a data module of the user's own may draw nothing
        data = {**data, "init_args": {**data["init_args"], "seed": seed}}
    return {**config, "seed_everything": seed, "model": {**config["model"], "seed": seed}, "data": data}


def run_id(config: Mapping[str, Any], prefix: str | None = None) -> str:
    """Twelve hexadecimal digits of a SHA-256 over all settings that decide what a run computes and measures.

    Where data lie, how many ranks there are and what is logged where do not belong to it; weights that a run starts from do, by
    what they are.

    Args:
        config: all settings.
        prefix: the id of the run that this one is forked from, where it is another run than from its start by that.

    Raises:
        ConfigurationError: such weights cannot be read.
    """
    decisive = {key: value for key, value in config["trainer"].items() if key not in INDECISIVE}
    start_from = config["model"].get("start_from")
    start = None if start_from is None else start_sha256(start_from)
    text = json.dumps([experiment(config, start=start, prefix=prefix), decisive], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check_ends(config: Mapping[str, Any]) -> None:
    """Raise for settings with which a run of a sweep would never be finished, or that the sweep would replace."""
    trainer = config["trainer"]
    if trainer.get("fast_dev_run"):
        raise ConfigurationError(
            f"trainer.fast_dev_run is {trainer['fast_dev_run']}: a trial writes nothing, so no run of a sweep would ever be "
            "finished; leave it out, and give fewer trainer.max_epochs"
        )
    if config.get("ckpt_path") is not None:
        raise ConfigurationError(f"ckpt_path is {config['ckpt_path']}, but a run of a sweep goes on from its own; leave it out")
