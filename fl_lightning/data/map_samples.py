"""Samples of any map-style data set, read one by one when a batch asks for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from fl_lightning.data.base import Samples, Stamp
from fl_lightning.data.handed_over import check_map_style
from fl_lightning.data.outcomes import CLASSES, Outcome
from fl_lightning.data.sample_form import Key, class_entry, input_entry, like, plain, replaced
from fl_lightning.data.table import TENSORS, is_table
from fl_lightning.errors import ConfigurationError, in_one_line


class MapSamples(Samples):
    """Any map-style torch data set whose samples are `(input, class)` pairs, longer tuples or mappings with a class entry.

    A sample is read when a batch asks for it. Triggers are written into the input that the data set gives, thus after whatever
    it does to it. Without a `collate_fn` of the user's own, pictures of PIL become tensors (C, H, W) in [0, 1], and lists of
    numbers tensors too.

    Args:
        dataset: has `__len__` and `__getitem__`.
        targets: (n,) int64 classes in place of the data set's own; left out, every sample is read once, and texts are numbered
            in the order of `in_order`.
        collate_fn: joins a list of samples into a batch; in each sample the class is a number, or a tensor () if it was one.
        target_key: the class entry of a mapping, or its place in a tuple, from 0; left out, the first of `TARGET_KEYS` that the
            samples have, or the second of two.
        outcome: how targets look, and when a prediction is right; one class per sample by default.

    Raises:
        ConfigurationError: if samples have another form, a class is none, a sample cannot be read, or some cannot be joined.

    Example:
        >>> MapSamples([(torch.zeros(2), "dog"), (torch.ones(2), "cat")]).batch(torch.tensor([0, 1]))[1]
        tensor([1, 0])
    """

    def __init__(
        self,
        dataset: Any,
        targets: Tensor | None = None,
        *,
        collate_fn: Callable[[list[Any]], Any] = default_collate,
        target_key: Key | None = None,
        outcome: Outcome = CLASSES,
    ) -> None:
        self.dataset = dataset
        self.collate_fn = collate_fn
        self._rows: list[int] | None = None  # of the data set; None for all, in order
        self._stamps: tuple[tuple[Stamp, list[bool]], ...] = ()
        check_map_style(dataset, "given")
        self.target_key = class_entry(self._read(0), target_key)
        if targets is None:
            targets = outcome.read([self._read(i)[self.target_key] for i in range(len(dataset))], "the data")
        else:
            targets = outcome.read(targets, "the targets given")
        if len(targets) != len(dataset):
            raise ConfigurationError(f"there must be a class for every sample, got {len(targets)} for {len(dataset)}")
        self.targets = targets
        self.outcome = outcome

    def _read(self, index: int) -> Any:
        """A sample as the data set gives it."""
        row = index if self._rows is None else self._rows[index]
        try:
            return self.dataset[row]
        except ConfigurationError:
            raise
        except Exception as error:  # whatever a data set of the user's may do
            raise unreadable(self.dataset, row, error) from error

    def _read_all(self, indices: list[int]) -> list[Any]:
        """Several samples; a table gives them at once, several times as fast."""
        if is_table(self.dataset) and self.dataset.format["type"] in TENSORS:
            try:
                return self.dataset.__getitems__(indices if self._rows is None else [self._rows[i] for i in indices])
            except Exception:  # what one of them is, is found below
                pass
        return [self._read(i) for i in indices]

    def __getitem__(self, index: int) -> Any:
        return self._finished(int(index), self._read(int(index)))

    def _finished(self, index: int, sample: Any) -> Any:
        """A sample as it was read, with its triggers and its class."""
        label = self.targets[index]
        if self.collate_fn is default_collate:
            sample = plain(sample)
        else:
            label = like(sample[self.target_key], label)
        for stamp, carries in self._stamps:
            if carries[index]:
                entry = self._input(sample)
                sample = replaced(sample, {entry: stamp(sample[entry][None])[0]})
        return replaced(sample, {self.target_key: label})

    def _input(self, sample: Any) -> Key:
        entry = input_entry(sample, self.target_key)
        if entry is None:
            raise ConfigurationError("a trigger cannot be written into samples with none or several inputs that are tensors")
        return entry

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Any:
        chosen = indices.tolist()
        samples = [self._finished(i, sample) for i, sample in zip(chosen, self._read_all(chosen), strict=True)]
        try:
            return self.collate_fn(samples)
        except Exception as error:  # whatever a function of the user's may do
            raise ConfigurationError(
                f"{len(samples)} samples of {type(self.dataset).__name__} cannot be joined into a batch by "
                f"{getattr(self.collate_fn, '__name__', self.collate_fn)} ({in_one_line(error)}); bring samples to one form "
                "and shape, or pass collate_fn=, a function that joins a list of them, for example by padding"
            ) from error

    def raw(self, indices: Tensor) -> Tensor | None:
        samples = [plain(sample) for sample in self._read_all(indices.tolist())]
        entries = [input_entry(sample, self.target_key) for sample in samples]
        inputs = [sample[entry] for sample, entry in zip(samples, entries, strict=True) if entry is not None]
        alike = len(inputs) == len(samples) > 0 and len({(x.shape, x.dtype) for x in inputs}) == 1
        return torch.stack(inputs) if alike else None

    def stamped(self, stamp: Stamp, rows: Tensor) -> MapSamples:
        return self._with(self._rows, self.targets, (*self._stamps, (stamp, rows.tolist())))

    def subset(self, indices: Tensor) -> MapSamples:
        chosen = indices.tolist()
        rows = chosen if self._rows is None else [self._rows[i] for i in chosen]
        stamps = tuple((stamp, [carries[i] for i in chosen]) for stamp, carries in self._stamps)
        return self._with(rows, self.targets[indices.cpu()], stamps)

    def relabel(self, targets: Tensor) -> MapSamples:
        return self._with(self._rows, targets.cpu(), self._stamps)

    def _with(self, rows: list[int] | None, targets: Tensor, stamps: tuple[tuple[Stamp, list[bool]], ...]) -> MapSamples:
        other = object.__new__(MapSamples)
        other.dataset, other.collate_fn, other.target_key = self.dataset, self.collate_fn, self.target_key
        other._rows, other.targets, other._stamps, other.outcome = rows, targets, stamps, self.outcome
        return other


def unreadable(dataset: Any, row: int, error: Exception) -> ConfigurationError:
    """What to say of a sample that a data set of the user's does not give."""
    return ConfigurationError(
        f"sample {row} of {type(dataset).__name__} cannot be read ({in_one_line(error)}); correct or remove it, or see that "
        "the data set has as many samples as its length says"
    )
