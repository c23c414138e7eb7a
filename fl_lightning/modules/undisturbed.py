"""A module that is as it was, whatever its forward pass changes.

Ranks evaluate different batches. A forward that counts, renormalises weights or remembers what it saw would leave another
global model on each of them, and later batches would be predicted by other models than earlier ones. So whatever a batch has
changed is put back before the next one: parameters, buffers, modes, and what it keeps in Python.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from fl_lightning.errors import enumerated
from fl_lightning.modules.bits import as_integers
from fl_lightning.modules.frozen_base import base_names
from fl_lightning.modules.kept_python import KeptPython
from fl_lightning.seeding import bookmark, derive_seed, generator, seed_global_generators, seed_source

log = logging.getLogger(__name__)


class Keepsake:
    """What a module is like now, of which it is made so again.

    Args:
        module: the module, of whose tensors a copy is kept, but for a frozen base.

    Example:
        >>> layer = torch.nn.BatchNorm1d(2)
        >>> kept = Keepsake(layer)
        >>> layer.running_mean = layer.running_mean + 1
        >>> kept.put_back(), layer.running_mean
        (['running_mean'], tensor([0., 0.]))
    """

    def __init__(self, module: nn.Module) -> None:
        parts = list(module.named_modules())
        self.modes = [(name, part, part.training) for name, part in parts]
        self.tables = [
            (name, table, dict(table))
            for name, part in parts
            for table in (part._parameters, part._buffers, part._modules)
            if isinstance(table, dict)  # those of scripted modules are fixed
        ]
        named = (
            (tensor, f"{name}.{key}" if name else key)
            for name, part in parts
            for key, tensor in (*part._parameters.items(), *part._buffers.items())
            if tensor is not None
        )
        base = base_names(module)
        self.names = {tensor: name for tensor, name in named if name not in base}
        self.memories = [tensor.data for tensor in self.names]  # where values lie: `tensor.data = other` leads elsewhere
        self.marks = self._marks()
        self.values = self._values()
        self.python = KeptPython({"": module}, metrics=True)
        self.bookmarks = [bookmark(source) for source in self.python.generators.values()]

    def seed(self, seed: int, purpose: str, *keys: int) -> None:
        """Seed the random generators that the module holds by (seed, purpose, their path, keys), until it is put back."""
        for path, source in self.python.generators.items():
            seed_source(source, derive_seed(seed, f"{purpose} {path}", *keys))

    def _marks(self) -> list[tuple[int, int]]:
        """What most ways of writing into a tensor change, and what costs next to nothing to look at."""
        return [(-1 if tensor.is_inference() else tensor._version, tensor.data_ptr()) for tensor in self.names]

    def _values(self) -> dict[torch.dtype, Tensor]:
        """A copy of all values, those of one type side by side, by their bits."""
        of_type = defaultdict(list)
        for tensor in self.names:
            of_type[tensor.dtype].append(tensor.detach().reshape(-1))
        return {dtype: as_integers(torch.cat(flat)) for dtype, flat in of_type.items()}

    def put_back(self, *, thoroughly: bool = False) -> list[str]:
        """Undo all changes.

        Args:
            thoroughly: look at the tensors' values, as `tensor.data.add_(1)` shows nowhere else.

        Returns:
            The names of what had changed, but for random generators.
        """
        found = [f"{name}.{key}" if name else key for name, *tables in self.tables for key in put_entries_back(*tables)]
        if thoroughly or found or self._marks() != self.marks:
            found += self._put_values_back()
        for name, part, training in self.modes:
            if part.training != training:
                part.training = training
                found.append(f"{name}.training" if name else "training")
        found += self.python.restore()
        for go_back in self.bookmarks:
            go_back()
        return list(dict.fromkeys(found))

    @torch.no_grad()
    def _put_values_back(self) -> list[str]:
        found = []
        for (tensor, name), memory in zip(self.names.items(), self.memories, strict=True):
            if (tensor.data_ptr(), tensor.shape, tensor.dtype) != (memory.data_ptr(), memory.shape, memory.dtype):
                tensor.data = memory
                found.append(name)
        now = self._values()
        same = all(torch.equal(now[dtype], values) for dtype, values in self.values.items())
        at: dict[torch.dtype, int] = defaultdict(int)
        for tensor, name in self.names.items():
            first = at[tensor.dtype]
            at[tensor.dtype] = end = first + tensor.numel() * max(1, tensor.element_size() // 8)
            differs = not same and not torch.equal(now[tensor.dtype][first:end], self.values[tensor.dtype][first:end])
            if differs:
                tensor.copy_(self.values[tensor.dtype][first:end].view(tensor.dtype).view(tensor.shape))
                found.append(name)
        self.marks = self._marks()
        return found


def put_entries_back(table: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Which tensors or modules a module has under which names: as before; and the names that had changed."""
    if len(table) == len(before) and all(table.get(key) is entry for key, entry in before.items()):
        return []
    changed = [key for key in {**before, **table} if (key in table) != (key in before) or table[key] is not before[key]]
    table.clear()
    table.update(before)
    return changed


class Undisturbed:
    """Evaluations that leave a module as it was, with draws that depend on nothing but the batch.

    Args:
        seed: the experiment's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._keepsake: Keepsake | None = None
        self._own_draws = ExitStack()
        self._named: set[str] = set()
        self._place = (0, 0)

    def begin(self) -> None:
        """Before the first batch. A callback may still put other weights into the module."""
        self._keepsake = None
        self._own_draws.close()
        self._own_draws.enter_context(isolate_rng())

    def end(self) -> None:
        """After the last one."""
        self._keepsake = None
        self._own_draws.close()

    def generator(self, purpose: str, *keys: int) -> torch.Generator:
        """A CPU generator for draws on the batch under way, keyed by its set, its number there, and `keys`."""
        return generator(self.seed, purpose, *keys, *self._place)

    @contextmanager
    def batch(self, module: nn.Module, trainer: L.Trainer | None, batch_idx: int, dataloader_idx: int) -> Iterator[None]:
        """Around a batch's forward pass. Draws are keyed by the evaluation set and the batch's number in it.

        Values are looked at after the first and the last batches of a set, and after all once something was found.
        """
        if trainer is None:  # a batch alone, in no evaluation
            with undisturbed(module):
                yield
            return
        if self._keepsake is None:
            self._keepsake = Keepsake(module)
        number = batch_idx * trainer.world_size + trainer.global_rank
        self._place = (dataloader_idx, number)
        seed_global_generators(derive_seed(self.seed, "evaluation", dataloader_idx, number))
        self._keepsake.seed(self.seed, "evaluation", dataloader_idx, number)
        yield
        at_an_end = (
            batch_idx == 0 or batch_idx + 2 >= batches_of(trainer)[dataloader_idx]
        )  # a rank may have none in the last step
        found = self._keepsake.put_back(thoroughly=at_an_end or bool(self._named))
        if new := [name for name in found if name not in self._named]:
            self._named.update(new)
            log.warning(
                "evaluation changes %s of %s; that is put back after every batch, so that neither the model nor Acc depends on "
                "who evaluates what; to change it for good do so in training_step",
                enumerated(new),
                type(module).__name__,
            )


def batches_of(trainer: L.Trainer) -> list[int | float]:
    """How many batches each set has that is evaluated now."""
    if trainer.predicting:
        return trainer.num_predict_batches
    return trainer.num_test_batches if trainer.testing else trainer.num_val_batches


@contextmanager
def gradients_aside(module: nn.Module) -> Iterator[None]:
    """Around steps of somebody else's: parameters have no gradients inside, and those that they had again after it."""
    kept = [(parameter, parameter.grad) for parameter in module.parameters()]
    for parameter, _ in kept:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Around anything that is to leave a module as it was, also where it fails."""
    kept = Keepsake(module)
    try:
        yield
    finally:
        kept.put_back(thoroughly=True)
