"""Labelled data that is read in batches.

`Samples` is a data set of which any batch can be had by its indices. Tasks hold theirs in tensors on the training device
(`TensorSamples`: raw values, augmented, stamped with triggers and normalised batch by batch); any map-style torch data set
works too (`MapSamples`). Attacks build poisoned and stamped data from the same verbs: `subset`, `relabel`, `stamped`, `join`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fl_lightning.data.outcomes import CLASSES, Outcome
from fl_lightning.errors import ConfigurationError

Stamp = Callable[[Tensor], Tensor]
"""Writes a trigger into raw inputs: (b, ...) -> (b, ...), a new tensor of the same shape, dtype and device, row by row."""


@runtime_checkable
class Augmentation(Protocol):
    """An augmentation whose draws can be made before the samples are there, for several batches at once."""

    def draw(self, b: int, generator: torch.Generator) -> Tensor:
        """What b samples need, (..., b) on the CPU; how much is drawn depends on b alone."""

    def apply(self, inputs: Tensor, drawn: Tensor) -> Tensor:
        """Raw inputs (b, ...) to the same, row by row."""

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Both in one."""


SMALL_BYTES = 2**17
"""Of raw inputs: batches that have no more together are read at once, as what one takes is mostly the calls."""

SMALL_BYTES_ON_A_GPU = 2**24
"""The same there, where calls take longer than what they do."""


class Samples(Dataset[Any], ABC):
    """A labelled data set that is read in batches.

    Attributes:
        targets: (n, ...), what is asked for of every sample; (n,) int64 classes, unless `outcome` says otherwise.
        outcome: how targets look, and when a prediction is right.
    """

    targets: Tensor
    outcome: Outcome = CLASSES

    @property
    def plain(self) -> bool:
        """Whether reading them draws from no global generator, as they are tensors that nobody's own code reads."""
        return False

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Any:
        """The samples at `indices` as one batch, as a module's `training_step` takes it.

        Args:
            indices: (b,) int64 positions in [0, n).
            generator: CPU generator for augmentation; without one there is no augmentation.
        """

    def batches(self, order: Tensor, sizes: Sequence[int], generator: torch.Generator | None = None) -> Iterator[Any]:
        """One batch after the other, as `batch` would give them, each made when it is asked for or before.

        Args:
            order: (m,) int64 positions in [0, n), of which batches take one stretch after the other.
            sizes: b of each batch, together at most m.
            generator: as for `batch`.
        """
        ends = accumulate(sizes)
        return (self.batch(order[end - size : end], generator) for size, end in zip(sizes, ends, strict=True))

    @abstractmethod
    def subset(self, indices: Tensor) -> Samples:
        """The samples at `indices` ((m,) int64), in that order; repeats are allowed."""

    def read_through(self, indices: Tensor) -> Samples:
        """A subset that may read from this data set's own memory, for as long as neither that nor `indices` change."""
        return self.subset(indices)

    @abstractmethod
    def relabel(self, targets: Tensor) -> Samples:
        """The same inputs with other targets, of the shape and type of their own."""

    def to(self, device: torch.device) -> Samples:
        """Make the samples resident on `device` where that is possible, which it is not for lazily read data."""
        return self

    def raw(self, indices: Tensor) -> Tensor | None:
        """What triggers are written into, (m, ...) of the samples at `indices`, without them; None if there is none."""
        return None

    def extremes(self) -> Tensor:
        """Positions (m,) int64 of a few samples that ask most of a model, such as the longest text: none by default.

        A model that can read these can read all; each is predicted before training.
        """
        return torch.empty(0, dtype=torch.int64)

    def stamped(self, stamp: Stamp, rows: Tensor) -> Samples:
        """The same samples, of which those in `rows` carry a trigger from now on, on top of any that they carry already.

        Args:
            stamp: called on every batch that is read, so a trigger may change during a run.
            rows: (n,) bool.
        """
        raise ConfigurationError(f"{type(self).__name__} has no inputs that a trigger can be written into")

    def __getitem__(self, index: int) -> Any:
        """One sample without its batch axis, as collating takes it."""
        return _map_structure(lambda value: value[0], self.batch(torch.tensor([index])))


class TensorSamples(Samples):
    """Samples held whole in tensors, usually on the training device.

    A batch is augmented, then stamped with triggers, then prepared: a crop cannot move a trigger, and a trigger is written in
    raw scale.

    Args:
        inputs: (n, ...) raw inputs of any dtype, for example uint8 images.
        targets: (n,) int64 classes, or what `outcome` has for targets.
        augment: `(raw batch, generator) -> raw batch`, applied in training only; with an `Augmentation` several batches are
            read at once.
        prepare: `raw inputs -> model inputs`, row by row, for example scaling to float and normalising; it may be given several
            batches at once.
        stamps: triggers with the samples that carry them, (n,) bool each, applied in this order; `stamped` adds one.
        feature_names: of the columns of a table, in order; None where they have no names.
        outcome: how targets look, and when a prediction is right; one class per sample by default.

    Example:
        >>> data = TensorSamples(torch.arange(6.).view(3, 2), torch.tensor([0, 1, 0]))
        >>> data.batch(torch.tensor([2, 0]))[1]
        tensor([0, 0])
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        prepare: Callable[[Tensor], Tensor] | None = None,
        stamps: Sequence[tuple[Stamp, Tensor]] = (),
        feature_names: Sequence[str] | None = None,
        outcome: Outcome = CLASSES,
    ) -> None:
        if not isinstance(inputs, Tensor):
            raise ConfigurationError(f"inputs must be a tensor, got {type(inputs).__name__}; give torch.as_tensor(inputs)")
        given, targets = targets, outcome.read(targets, "the targets given")
        if targets is not given:
            targets = targets.to(inputs.device)
        if len(inputs) != len(targets):
            raise ConfigurationError(f"inputs and targets must have the same length, got {len(inputs)} and {len(targets)}")
        for _, rows in stamps:
            if len(rows) != len(inputs) or rows.dtype != torch.bool:
                raise ConfigurationError(
                    f"stamps need one bool per sample, so {len(inputs)} of them, got {len(rows)} of {rows.dtype}"
                )
        self._inputs = inputs
        self._rows: Tensor | None = None  # of these; None for all, in order
        self.targets = targets
        self.augment = augment
        self.prepare = prepare
        self.stamps = tuple(stamps)
        self.feature_names = feature_names
        self.outcome = outcome

    @property
    def plain(self) -> bool:
        readers = [of for of in (self.augment, self.prepare) if of is not None]
        ours = all((getattr(of, "__module__", None) or type(of).__module__).startswith("fl_lightning.") for of in readers)
        return ours and type(self) is TensorSamples and not self.stamps

    @property
    def inputs(self) -> Tensor:
        """(n, ...) raw inputs. What `read_through` gives has its own only from when they are asked for."""
        if self._rows is not None:
            self._inputs, self._rows = self._inputs.index_select(0, self._rows), None
        return self._inputs

    def extremes(self) -> Tensor:
        found = getattr(self.prepare, "extremes", None)
        return super().extremes() if found is None or not len(self) else found(self.inputs)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        augment = self.augment
        if augment is None or generator is None:
            return self._read(indices, None)
        return self._read(indices, lambda inputs: augment(inputs, generator))

    def _read(self, indices: Tensor, augment: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, Tensor]:
        indices = indices.to(self._inputs.device, non_blocking=True)
        inputs = self._inputs.index_select(0, self._of_whole(indices))
        if augment is not None:
            inputs = augment(inputs)
        for stamp, rows in self.stamps:
            # The whole batch is stamped and partly taken, as picking rows by a mask would make a GPU wait.
            carries = rows.index_select(0, indices).view(-1, *[1] * (inputs.ndim - 1))
            inputs = torch.where(carries, stamp(inputs), inputs)
        if self.prepare is not None:
            inputs = self.prepare(inputs)
        return inputs, self.targets.index_select(0, indices)

    def batches(self, order: Tensor, sizes: Sequence[int], generator: torch.Generator | None = None) -> Iterator[Any]:
        # None first: to look whether something has a protocol's methods takes as long as to read a small client's data.
        augmentation = self.augment if self.augment is not None and isinstance(self.augment, Augmentation) else None
        if self.stamps or type(self).batch is not TensorSamples.batch or self.augment is not augmentation:
            yield from super().batches(order, sizes, generator)  # what is drawn, or may change, from batch to batch
            return
        largest = max(sizes, default=0) * (self._inputs.nbytes // max(1, len(self._inputs)))
        at_once = max(1, (SMALL_BYTES_ON_A_GPU if self._inputs.is_cuda else SMALL_BYTES) // max(1, largest))
        at = 0
        for first in range(0, len(sizes), at_once):
            group, augment = list(sizes[first : first + at_once]), None
            if augmentation is not None and generator is not None:
                drawn = torch.cat([augmentation.draw(size, generator) for size in group], dim=-1)
                augment = partial(augmentation.apply, drawn=drawn)
            inputs, targets = self._read(order[at : at + sum(group)], augment)
            yield from zip(inputs.split(group), targets.split(group), strict=True)
            at += sum(group)

    def subset(self, indices: Tensor) -> TensorSamples:
        part = self.read_through(indices)
        part.inputs  # noqa: B018  of its own
        return part

    def read_through(self, indices: Tensor) -> TensorSamples:
        indices = indices.to(self._inputs.device, non_blocking=True)
        if len(indices) == len(self) and torch.equal(indices, torch.arange(len(self), device=indices.device)):
            return self  # a full copy of the data need not be copied
        part = TensorSamples.__new__(TensorSamples)  # for every client; what there is to check was checked
        vars(part).update(vars(self))
        part._rows = self._of_whole(indices)
        part.targets = self.targets.index_select(0, indices)
        part.stamps = tuple((stamp, rows.index_select(0, indices)) for stamp, rows in self.stamps)
        return part

    def _of_whole(self, indices: Tensor) -> Tensor:
        """Where samples are in `_inputs`."""
        return indices if self._rows is None else self._rows.index_select(0, indices)

    def relabel(self, targets: Tensor) -> TensorSamples:
        return self._with(self.inputs, targets.to(self.targets.device), self.stamps)

    def with_inputs(self, inputs: Tensor) -> TensorSamples:
        """The same targets with other raw inputs of the same length, for example with a trigger written into them."""
        return self._with(inputs, self.targets, self.stamps)

    def raw(self, indices: Tensor) -> Tensor:
        indices = indices.to(self._inputs.device)
        return self._inputs.index_select(0, self._of_whole(indices))

    def stamped(self, stamp: Stamp, rows: Tensor) -> TensorSamples:
        return self._with(self.inputs, self.targets, [*self.stamps, (stamp, rows.to(self.inputs.device))])

    def to(self, device: torch.device) -> TensorSamples:
        stamps = [(stamp, rows.to(device)) for stamp, rows in self.stamps]
        return self._with(self.inputs.to(device), self.targets.to(device), stamps)

    def _with(self, inputs: Tensor, targets: Tensor, stamps: Sequence[tuple[Stamp, Tensor]]) -> TensorSamples:
        return TensorSamples(
            inputs,
            targets,
            augment=self.augment,
            prepare=self.prepare,
            stamps=stamps,
            feature_names=self.feature_names,
            outcome=self.outcome,
        )


def _map_structure(function: Callable[[Any], Any], batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return {key: _map_structure(function, value) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(_map_structure(function, value) for value in batch)
    return function(batch)
