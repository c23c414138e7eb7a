"""The client module of a run that has been trained: read from its checkpoint, for predictions or to go on from."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.nn.parameter import is_lazy

from fl_lightning.checked import shown
from fl_lightning.checkpoints import checkpoint_files
from fl_lightning.checkpoints.newest import LAST, checkpoint_of
from fl_lightning.errors import SOME_LETTERS, ConfigurationError, enumerated, in_one_line
from fl_lightning.files.sealed import DamagedError
from fl_lightning.files.yaml_files import load_yaml

CLIENT = "client."
"""What names of the client's tensors begin with in a federation's checkpoint."""


class Loadable:
    """What a federation's class can give of its runs."""

    @classmethod
    def load(cls, path: str | os.PathLike[str], client: Any = None) -> Any:
        """The trained client module of a run, on the CPU and in evaluation mode.

        Args:
            path: the folder of a run, for its `last.ckpt`, or a checkpoint.
            client: the module to load into; left out, it is made as the run's configuration says.

        Raises:
            ConfigurationError: no checkpoint, a damaged one, or one of another model.

        Example:
            >>> Federation.load("runs/quickstart")(torch.zeros(1, 45)).shape
            torch.Size([1, 2])
        """
        if not isinstance(path, (str, os.PathLike)):
            raise ConfigurationError(f"path must be that of a run's folder or of a checkpoint, got {shown(path)}; give runs/x")
        if client is not None and not isinstance(client, nn.Module):
            raise ConfigurationError(
                f"client must be a module, such as Net(), whose weights are then replaced; got {shown(client)}"
            )
        file = checkpoint_of(Path(path))
        checkpoint = read_checkpoint(file)
        if client is None:
            client = make_client(settings_of(checkpoint, file), file)
        load_weights(client, checkpoint, file)
        return client.eval()

    @classmethod
    def load_from_checkpoint(cls, *_: Any, **__: Any) -> Any:
        """A checkpoint holds weights, and neither rule nor data: there is nothing to make a federation of."""
        raise ConfigurationError(
            "a federation is not made from a checkpoint: Federation.load(path) gives the trained client module, and fit, "
            "validate, test and predict of a Trainer take ckpt_path"
        )


def load_weights(client: nn.Module, checkpoint: Mapping[str, Any], file: Path) -> None:
    """Put the global model of a checkpoint into a module, in which every tensor must have its place."""
    client.load_state_dict(weights_for(client, checkpoint, file, "give client= as it was trained"))


def weights_for(client: nn.Module, checkpoint: Mapping[str, Any], file: Any, remedy: str) -> dict[str, Any]:
    """The global model of a checkpoint, after seeing that every tensor has its place in the module."""
    weights = {name.removeprefix(CLIENT): w for name, w in checkpoint["state_dict"].items() if name.startswith(CLIENT)}
    different = list(differences(client.state_dict(), weights))
    if different:
        raise ConfigurationError(
            f"the checkpoint {file} is of another model than {type(client).__name__}: "
            f"{enumerated(different, SOME_LETTERS, '; ')}; {remedy}"
        )
    return weights


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A federation's checkpoint, after a look at its digest or checksums; nothing in it is run.

    Raises:
        ConfigurationError: damaged, or no checkpoint of a federation.
    """
    checkpoint = read_file(file)
    if not isinstance(checkpoint, dict) or "federation" not in checkpoint or "state_dict" not in checkpoint:
        raise ConfigurationError(f"{file} is not a checkpoint of a federation; give the {LAST} of a run")
    return checkpoint


def read_file(file: Path) -> Any:
    """What a file of `torch.save` holds, on the CPU, after a look at its digest or checksums; nothing in it is run.

    Raises:
        ConfigurationError: damaged, or no such file.
    """
    try:
        if not is_pickle(file) and checkpoint_files.check(file) is None:  # of other programs: its parts have checksums
            with zipfile.ZipFile(file) as parts:
                damaged = parts.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        return torch.load(file, map_location="cpu", weights_only=True)
    except DamagedError:
        raise
    except pickle.UnpicklingError as error:
        raise ConfigurationError(
            f"the checkpoint {file} holds more than tensors and plain data, of a callback's perhaps or a whole module, which "
            "could be a program and is not read; give one that was written without that, as module.state_dict() is"
        ) from error
    except Exception as error:  # whatever may be wrong with bytes
        raise ConfigurationError(
            f"the checkpoint {file} cannot be read ({in_one_line(error)}); it is damaged or no checkpoint: give another one"
        ) from error


def is_pickle(file: Path) -> bool:
    """Whether a file is of the kind that `torch.save` wrote before version 1.6, which has neither digest nor checksums."""
    with file.open("rb") as opened:
        return opened.read(1) == b"\x80"


def settings_of(checkpoint: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """What the run's configuration says of its client: in the checkpoint itself or, where that has none, in config.yaml."""
    states = (state for key, state in checkpoint.get("callbacks", {}).items() if key.startswith("RunRecord"))
    configs = [state.get("config") for state in states if isinstance(state, Mapping)]
    beside = file.with_name("config.yaml")
    if beside.is_file():
        try:
            configs.append(load_yaml(beside, str(beside)))
        except ConfigurationError as error:
            raise ConfigurationError(f"{error}; give client=, as it was trained") from error
    for config in configs:
        model = config.get("model") if isinstance(config, Mapping) else None
        client = model.get("client") if isinstance(model, Mapping) else None
        if isinstance(client, Mapping) and "class_path" in client:
            return dict(client)
    raise ConfigurationError(
        f"neither {file} nor a config.yaml beside it says what the client's class is; give it: "
        "Federation.load(path, client=Net())"
    )


def make_client(settings: dict[str, Any], file: Path) -> nn.Module:
    """The module that `class_path` and `init_args` describe. The caller's random numbers stay as they are."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "client")
    try:
        with isolate_rng():
            return parser.instantiate(parser.parse_object({"client": settings})).client
    except Exception as error:  # whatever a user's class may raise
        raise ConfigurationError(
            f"the client of {file}, {settings['class_path']}, cannot be made ({in_one_line(error)}); give it: "
            "Federation.load(path, client=Net())"
        ) from error


def differences(here: Mapping[str, Any], there: Mapping[str, Any], where: str = "the checkpoint") -> Iterator[str]:
    """Each tensor by which a model differs from that of a checkpoint, or of what is named, in words."""
    for name in [*there, *(name for name in here if name not in there)]:
        if name not in here:
            yield f"{name} is in {where} alone"
        elif name not in there:
            yield f"{name} is not in {where}"
        else:
            shapes = [None if is_lazy(t) else tuple(getattr(t, "shape", ())) for t in (here[name], there[name])]
            if None not in shapes and shapes[0] != shapes[1]:
                yield f"{name} is {shapes[1]} in {where} and {shapes[0]} here"
