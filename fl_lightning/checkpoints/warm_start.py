"""The weights that a run starts from: another run's, or a file's, in place of those that the client was made with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fl_lightning.checked import shown
from fl_lightning.checkpoints.newest import START_FROM, checkpoint_of
from fl_lightning.checkpoints.trained import CLIENT, differences, read_file
from fl_lightning.errors import SOME_LETTERS, ConfigurationError, enumerated
from fl_lightning.modules.bits import same_bits, tensors_sha256
from fl_lightning.updates.gathering import gather_objects

NO_PARAMETER = "_extra_state"
"""The end of a name under which a module may keep anything; neither a parameter nor a buffer."""

SAFE = ".safetensors"
"""The ending of files in which the Hub has weights, which are not of `torch.save`."""


@dataclass
class WarmStart:
    """Where the initial weights come from.

    Attributes:
        path: a run's folder, a checkpoint, or a file of `torch.save` with a `state_dict`; None for the client's own weights.
        sha256: of the weights, by their names; None until they have been read. A run that goes on has it from its checkpoint.
    """

    path: str | None = None
    sha256: str | None = None

    @classmethod
    def at(cls, path: Any) -> WarmStart:
        """Where `Federation(start_from=path)` has them from.

        Raises:
            ConfigurationError: it cannot be the path of anything.
        """
        if path is None:
            return cls()
        if not isinstance(path, (str, os.PathLike)) or not str(path) or "\0" in str(path):
            raise ConfigurationError(
                f"{START_FROM} must be the path of a run's folder, a checkpoint or a file of weights, got {shown(path)}; "
                "give runs/x or weights.pt, or null for the client's own weights"
            )
        return cls(str(path))

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> WarmStart:
        """The one that gave this `record`."""
        return cls() if record is None else cls(record["path"], record["sha256"])

    @property
    def record(self) -> dict[str, Any] | None:
        """Path and digest, for the run's record and its checkpoints; None for the client's own weights."""
        return None if self.path is None else asdict(self)

    def check(self, client: nn.Module) -> None:
        """Raise `ConfigurationError` unless the weights can be read and have their places in the module."""
        if self.path is not None:
            self._read_for(client, self.path)

    def begin(self, client: nn.Module, trainer: L.Trainer, *, anew: bool = True) -> None:
        """Put the weights into the module where a run begins; all ranks must call it.

        A run that goes on, from a checkpoint or in this process, has weights already and needs the file no more.

        Args:
            client: the global model.
            trainer: after it has read its checkpoint, if it has one.
            anew: whether a module gets them that had them before, and has been trained since.

        Raises:
            ConfigurationError: on all ranks alike, if one cannot read the weights, or reads others.
        """
        if self.path is None or trainer.ckpt_path is not None or trainer.global_step or (self.sha256 and not anew):
            return
        weights, trouble = {}, ""
        try:
            weights = self._read_for(client, self.path)
        except ConfigurationError as error:
            trouble = str(error)
        digest = tensors_sha256(weights)
        found = [(digest, trouble)]
        if trainer.world_size > 1:
            found = gather_objects((digest, trouble), trainer.strategy.root_device)
        self._check_alike(found)
        client.load_state_dict(weights, strict=False)  # names are compared by now, of parameters and buffers
        self._check_loaded(client, weights)
        self.sha256 = digest

    def _read_for(self, client: nn.Module, path: str) -> dict[str, Tensor]:
        """The weights, after seeing that every tensor has its place in the module, in its shape and type."""
        weights = read_weights(path)
        here = {name: tensor for name, tensor in client.state_dict().items() if not name.endswith(NO_PARAMETER)}
        different = list(differences(here, weights, "the file"))
        if different:
            raise ConfigurationError(
                f"{START_FROM}: {path} is of another model than {type(client).__name__}: "
                f"{enumerated(different, SOME_LETTERS, '; ')}; give the weights of a {type(client).__name__} with the "
                "same arguments"
            )
        other = [
            f"{name} is {weights[name].dtype} in the file and {tensor.dtype} here"
            for name, tensor in here.items()
            if weights[name].dtype != tensor.dtype and not is_lazy(tensor)
        ]
        if other:
            raise ConfigurationError(
                f"{START_FROM}: {path} has numbers of another type: {enumerated(other, SOME_LETTERS, '; ')}; convert them, as "
                "by tensor.float(), and save them again"
            )
        parameters = {name for name, _ in client.named_parameters(remove_duplicate=False)}
        for name, tensor in weights.items():  # a mask of -inf may be a buffer
            if tensor.isnan().any() or (name in parameters and not tensor.isfinite().all()):
                raise ConfigurationError(
                    f"{START_FROM}: {path} has values that are not finite in {name}; nothing can be learned from there: give "
                    "weights of a training that did not diverge"
                )
        return weights

    def _check_alike(self, found: Sequence[tuple[str, str]]) -> None:
        """Raise, on all ranks alike, where one has no weights, or others than rank 0. `found` is (digest, trouble) of each."""
        troubled = [rank for rank, (_, trouble) in enumerate(found) if trouble]
        if troubled:
            trouble = found[troubled[0]][1]
            some = len(troubled) < len(found)
            raise ConfigurationError(f"rank {troubled[0]}: {trouble}; all ranks must see the same file" if some else trouble)
        for rank, (digest, _) in enumerate(found):
            if digest != found[0][0]:
                raise ConfigurationError(
                    f"{START_FROM}: {self.path} has other weights on rank {rank} than on rank 0; all ranks must see the same "
                    "file"
                )

    def _check_loaded(self, client: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Raise where the module did not take the weights as they are: of tied parameters it can hold one value alone."""
        here = client.state_dict()
        for name, tensor in weights.items():
            if not same_bits(here[name].cpu(), tensor):
                raise ConfigurationError(
                    f"{START_FROM}: {name} is not what {self.path} has once it is loaded; {type(client).__name__} shares it "
                    "with another parameter, or changes it as it loads: give weights that the module has saved itself"
                )


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """A model's parameters and buffers by name, on the CPU; nothing in the file is run.

    Args:
        path: a run's folder, for its last checkpoint; a checkpoint of a federation, whose client is meant, or of any other
            LightningModule; a dict with a `state_dict`; or a dict of tensors.

    Raises:
        ConfigurationError: no such file, a damaged one, or one that holds something else.
    """
    try:
        file = checkpoint_of(Path(path))
        content = read_file(file)
    except ConfigurationError as error:
        other = Path(path).suffix == SAFE and Path(path).is_file()
        remedy = "; load it by safetensors.torch.load_file, and give what torch.save makes of that" if other else ""
        raise ConfigurationError(f"{START_FROM}: {error}{remedy}") from error
    named: Any = content
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        named = content["state_dict"]
        if "federation" in content:
            named = {name.removeprefix(CLIENT): tensor for name, tensor in named.items() if name.startswith(CLIENT)}
    if not isinstance(named, Mapping) or not named:
        raise ConfigurationError(
            f"{START_FROM}: {file} has no weights, but {shown(named)}; save them by torch.save(module.state_dict(), path)"
        )
    named = {name: tensor for name, tensor in named.items() if not str(name).endswith(NO_PARAMETER)}
    for name, tensor in named.items():
        plain = isinstance(tensor, Tensor) and tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta
        if not isinstance(name, str) or not plain:
            kind = "tensor of a kind that has no plain values" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ConfigurationError(
                f"{START_FROM}: {file} is no dict of tensors by name: {name!r:.60} is a {kind}; save the weights alone, by "
                "torch.save(module.state_dict(), path)"
            )
    return {name: tensor.detach() for name, tensor in named.items()}
