"""What can be seen of a command's arguments before anything is made of them."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from fl_lightning.errors import ConfigurationError
from fl_lightning.files.sealed import altered
from fl_lightning.files.yaml_files import Refused, as_argument, load_yaml, read_yaml
from fl_lightning.files.yaml_versions import as_version_1_2, check_text
from fl_lightning.options.layers import check_empty, check_layer, check_name, check_names, shortened, shown
from fl_lightning.options.old_names import EVERY, without_every
from fl_lightning.options.this_machine import most_processes

log = logging.getLogger(__name__)

SEEDED = (("model", "seed"), ("data", "init_args", "seed"))
"""What `seed_everything` sets."""

CONFIG = ("--config", "-c")

GROUPS = ("trainer", "model", "checkpoint")
"""What a command has in groups; parsers put links into a group over whatever else stood there."""


def check_arguments(args: Sequence[str]) -> None:
    """Raise for a layer of settings, or a value of an option, of which no parser could know what is meant."""
    check_seeds(args)
    for name, text in options(args):
        if name in CONFIG:
            layer = read_layer(text)
            for part in GROUPS:
                if isinstance(layer.get(part), (int, float, list)):
                    raise ConfigurationError(f"{part} must be a mapping of settings, got {shown(layer[part])}")
            check_names(layer, "")
            check_layer(layer, "")
        elif not text.lstrip().startswith(("[", "{")):
            check_name(text, name.lstrip("-"))
        else:
            try:
                value = read_yaml(text)
            except Refused as error:
                raise ConfigurationError(f"{name.lstrip('-')}: {error}") from error
            except yaml.YAMLError:
                continue  # to be taken as text, or to be refused for its type
            check_layer(value, name.lstrip("-"))


def without_old_settings(args: Sequence[str]) -> list[str]:
    """The arguments, with settings in place of files that hold what an earlier version wrote, and that now has no meaning.

    Raises:
        ConfigurationError: one of them has a meaning, and another name.
    """
    found = list(args)
    for i, word in enumerate(args):
        name, equals, text = word.partition("=")
        text = text if equals else "".join(args[i + 1 : i + 2])
        if name == "--model.cohort.every":
            raise ConfigurationError(EVERY.format(text))
        if name in CONFIG and (layer := read_layer(text)) != (kept := without_every(layer)):
            found[i if equals else i + 1] = f"{name}={as_argument(kept)}" if equals else as_argument(kept)
    return found


def check_reading(args: Sequence[str], config: Mapping[str, Any]) -> None:
    """Raise for arguments that a parser has dropped without a word, or read as YAML 1.1 has them and nobody means them.

    Args:
        args: the command's arguments.
        config: as what they were read, plain.
    """
    for name, text in options(args):
        if name in CONFIG:
            check_empty(read_layer(text), config, "")
            continue
        wrong, read = check_text(text), option_value(config, name.lstrip("-").split("."))
        if wrong is not None and isinstance(read, (bool, int, float)) and read != as_version_1_2(text):
            raise ConfigurationError(f"{name.lstrip('-')}: {wrong}")


def option_value(config: Any, place: Sequence[str]) -> Any:
    """What an option was read as; options leave out `init_args`, and mean the last one of a list."""
    if isinstance(config, list):
        return option_value(config[-1], place) if config else None
    if not place or not isinstance(config, Mapping):
        return None if place else config
    below = config if place[0] in config else config.get("init_args")
    return option_value(below[place[0]], place[1:]) if isinstance(below, Mapping) and place[0] in below else None


def check_seeds(args: Sequence[str]) -> None:
    """Raise where data or model are given a seed that `seed_everything` would replace without a word.

    Files that a run has written hold all three, alike.
    """
    layers = [read_layer(text) for name, text in options(args) if name in CONFIG]
    everything: Any = next((text for name, text in [*options(args)][::-1] if name == "--seed_everything"), None)
    if everything is None:
        everything = next((layer["seed_everything"] for layer in layers[::-1] if "seed_everything" in layer), 0)
    for name, text in options(args):
        if name in ("--model.seed", "--data.seed", "--data.init_args.seed"):
            raise ConfigurationError(f"{name} {text}: all draws are made from --seed_everything; give that one")
    for layer in layers:
        for place in SEEDED:
            seed, own = found(layer, place), layer.get("seed_everything", everything)
            if seed is not None and str(seed) != str(own):
                raise ConfigurationError(
                    f"{'.'.join(place)} is {seed}, but all draws are made from seed_everything, which is {own}; give that one"
                )


def options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The options among a command's arguments, as (name, value)."""
    for i, word in enumerate(args):
        name, equals, text = word.partition("=")
        if name.startswith("-"):
            yield name, text if equals else "".join(args[i + 1 : i + 2])


def read_layer(text: str) -> dict[str, Any]:
    """A file of settings, or settings themselves.

    Raises:
        ConfigurationError: the file cannot be read, or is not YAML; the message names it.
    """
    there = is_file(text)
    name = f"config: the file {text}" if there else "config"
    content = load_yaml(Path(text) if there else text, name)
    if not isinstance(content, dict):
        what = (
            f"has no settings but {shortened(repr(content))}" if there else f"{shortened(text)} is neither a file nor settings"
        )
        raise ConfigurationError(f"{name}: {what}; give a YAML file such as configs/quickstart.yaml")
    if there and altered(Path(text)):
        say_altered(text)
    if "config" in content:
        raise ConfigurationError(f"{name} has the key config, as a run.json has; the settings of a run are in its config.yaml")
    return content


@rank_zero_only
def say_altered(file: str) -> None:
    """Settings may be edited by hand, so that they are taken as they are."""
    log.warning(
        "%s is not as a run wrote it: edited, or damaged; it is taken as it stands. Delete its last line, the digest, and "
        "nothing is said.",
        file,
    )


def is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # settings themselves may be longer than a file's name
        return False


def found(node: Any, place: Sequence[str]) -> Any:
    """What stands at a place in settings, None if nothing does; a key may hold dots.

    >>> found({"model.seed": 3}, ["model", "seed"]), found({"model": {}}, ["model", "seed"])
    (3, None)
    """
    if not place or not isinstance(node, Mapping):
        return None if place else node
    heads = (i for i in range(1, len(place) + 1) if ".".join(place[:i]) in node)
    return next((value for i in heads if (value := found(node[".".join(place[:i])], place[i:])) is not None), None)


def check_checkpoint(path: str) -> None:
    """Raise unless `--ckpt_path` may name a checkpoint."""
    if path == "last":
        return
    if path in ("best", "hpc", "registry") or path.startswith("registry:"):
        raise ConfigurationError(f"ckpt_path: {path} is nothing that a command knows; give a file, or `last` for the run's own")
    if not is_file(path):
        raise ConfigurationError(
            f"ckpt_path: there is no file {shortened(path)}; give a checkpoint, or `last` for the run's own"
        )


def check_devices(devices: Any, nodes: int) -> None:
    """Raise for processes of a command that was started by itself, before it starts or waits for them.

    Args:
        devices: of each node.
        nodes: how many; those who start processes on several by hand say which node is which.
    """
    if str(devices).isdigit() and int(devices) > most_processes():
        raise ConfigurationError(f"trainer.devices = {devices}, but this machine takes at most {most_processes()} processes")
    if nodes > 1 and not {"NODE_RANK", "GROUP_RANK"} & set(os.environ):
        raise ConfigurationError(
            f"trainer.num_nodes = {nodes}, but nobody starts processes on the others; use torchrun or srun, which do"
        )
