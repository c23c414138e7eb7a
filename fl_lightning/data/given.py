"""Data sets of the user's as samples: read into memory where they fit and stay what they are, else when a batch asks for them.

A data set may say its classes in an attribute `targets`, which saves reading every sample. A wrapper may pass on that of the
data set beneath it, of other samples in another order. So the attribute counts only if it is the data set's own, has its
length, and agrees with what samples say: all of them where there are few or all are read anyway, else a fixed draw.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset, default_collate

from fl_lightning.data.base import Samples, TensorSamples
from fl_lightning.data.handed_over import check_map_style
from fl_lightning.data.map_samples import MapSamples, unreadable
from fl_lightning.data.outcomes import CLASSES, Outcome
from fl_lightning.data.pictures import is_picture
from fl_lightning.data.sample_form import Key, class_entry, input_entry, kinds, plain
from fl_lightning.data.table import Rows, as_rows, check_format, is_table, stated_by, uneven
from fl_lightning.data.targets import Stated, agreed, read_classes
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator, global_draws, seed_global_generators

log = logging.getLogger(__name__)

CHECKED = 1000
"""Samples that must agree with a data set's own `targets` where not all are read."""

TWICE = 32
"""Samples that are read twice, to see whether a data set gives the same again."""

HELD_BYTES = 2**30
"""Inputs that take no more together are read into memory."""

Kept = (Tensor, str, int, float)
"""Kinds of entries of samples that may be kept in memory, as nothing can change them behind."""


@dataclass(frozen=True)
class Reading:
    """What was read of a data set: its classes as it states them, and how to make samples of it with classes (n,) int64."""

    stated: Stated
    samples: Callable[[Tensor], Samples]


@dataclass(frozen=True)
class Wishes:
    """How the user wants samples to be read; see `FederatedDataModule.from_datasets`."""

    collate_fn: Callable[[list[Any]], Any] = default_collate
    target_key: Key | None = None
    images: bool | None = None
    outcome: Outcome | None = None

    @property
    def joined_by_torch(self) -> bool:
        return self.collate_fn is default_collate

    @property
    def asked(self) -> Outcome:
        """What is asked for of each sample."""
        return self.outcome or CLASSES

    def read(self, values: Any, where: str) -> Stated:
        """Targets in a data set's own form."""
        return read_classes(values, where) if self.asked.one_class else Stated("values", self.asked.read(values, where))


def as_samples(
    train: Any, test: Any, wishes: Wishes, *, num_classes: int | None = None, class_names: Sequence[str] = ()
) -> tuple[Samples, Samples, int, tuple[str, ...]]:
    """Two data sets as samples with classes of one numbering, how many classes there are, and their names."""
    if not isinstance(wishes.outcome, Outcome | None):
        raise ConfigurationError(f"outcome must be one such as Tokens(), MultiLabel() or Regression(), got {wishes.outcome!r}")
    if not callable(wishes.collate_fn):
        raise ConfigurationError(
            f"collate_fn must be a function that joins a list of samples into a batch, got {wishes.collate_fn!r}"
        )
    if wishes.images not in (True, False, None):
        raise ConfigurationError(f"images must be True, False or None, got {wishes.images!r}")
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names):
        raise ConfigurationError(f"class_names must be a list of texts, got {class_names!r}")
    if wishes.outcome is None and isinstance(train, Samples):
        wishes = replace(wishes, outcome=train.outcome)
    parts = [read(dataset, whose, wishes) for dataset, whose in ((train, "training"), (test, "test"))]
    if wishes.asked.one_class:
        *numbers, count, names = agreed(parts[0].stated, parts[1].stated, num_classes, tuple(class_names))
    else:
        numbers, names = [part.stated.numbers for part in parts], tuple(class_names)
        count = num_classes or len(names) or wishes.asked.count(numbers[0])
    made = [part.samples(of_part) for part, of_part in zip(parts, numbers, strict=True)]
    return made[0], made[1], count, names


def read(dataset: Any, whose: str, wishes: Wishes) -> Reading:
    """Look at a data set, and read what must be read of it.

    What it draws at random meanwhile comes from a fixed seed, so that ranks read the same, and the user's generators are left
    as they were.
    """
    check_map_style(dataset, whose)
    if isinstance(dataset, Samples):
        samples = dataset
        if samples.outcome != wishes.asked:
            raise ConfigurationError(
                f"the {whose} data are Samples that ask for {samples.outcome}, but outcome is {wishes.asked}; give both one"
            )
        kind = "numbers" if samples.outcome.one_class else "values"
        return Reading(Stated(kind, samples.targets.cpu()), lambda _: samples)
    with isolate_rng():
        seed_global_generators(0)
        if type(dataset) is TensorDataset and wishes.joined_by_torch and wishes.images is not False:
            inputs, *classes = dataset.tensors
            if len(classes) == 1 and _can_be_held(inputs):
                return _tensors(inputs, classes[0], whose, wishes)
        if is_table(dataset) and wishes.asked.one_class:
            return _table(dataset, whose, wishes)
        return _one_by_one(dataset, whose, wishes, _own(dataset, whose, wishes))


def _tensors(inputs: Tensor, classes: Tensor, whose: str, wishes: Wishes) -> Reading:
    """What tensors hold need not be read."""
    if wishes.images:
        _check_picture(inputs[0], whose)
    return Reading(
        wishes.read(classes, f"the {whose} data"),
        lambda targets: TensorSamples(inputs, targets.to(inputs.device), outcome=wishes.asked),
    )


def _table(table: Any, whose: str, wishes: Wishes) -> Reading:
    check_format(table, whose)
    if table.format["type"] == "custom":
        return _one_by_one(table, whose, wishes, None)  # classes may be made with the rest of a sample
    target = class_entry(_sample(table, 0), wishes.target_key)
    stated = stated_by(table, target, whose)
    rows = as_rows(table, HELD_BYTES, whose) if wishes.joined_by_torch else table
    if not isinstance(rows, Rows):
        return _one_by_one(table, whose, replace(wishes, target_key=target), stated)
    if (found := uneven(rows)) is not None:
        _refuse_shapes(whose, found[1], *(tuple(rows.columns[found[0]][row].shape) for row in (0, found[1])))
    if wishes.images:
        _check_picture(_input(plain(rows[0]), target), whose)
    return Reading(stated, lambda targets: MapSamples(rows, targets, target_key=target))


def _one_by_one(dataset: Any, whose: str, wishes: Wishes, own: Stated | None) -> Reading:
    n = len(dataset)
    target = class_entry(_sample(dataset, 0), wishes.target_key)
    form = plain if wishes.joined_by_torch else (lambda sample: sample)
    first = form(_sample(dataset, 0))
    expected = kinds(first, target)
    if wishes.images:
        _check_picture(_input(first, target), whose)
    kept = _room(first, target, n, wishes) if _stays(dataset, whose, target, form) else None
    every = own is None or kept is not None or n <= CHECKED
    chosen = range(n) if every else _draw(n, CHECKED)
    classes = []
    for row in chosen:
        sample = form(given := _sample(dataset, row))
        classes.append(given[target])
        if wishes.joined_by_torch:
            _check_alike(expected, kinds(sample, target), row, whose)
        if isinstance(kept, Tensor):
            kept[row] = _input(sample, target)
        elif kept is not None:
            kept.append(sample)
    if own is None or not _agrees(own, chosen, classes, whose, wishes):
        own = wishes.read(classes if every else [_sample(dataset, row)[target] for row in range(n)], f"the {whose} data")
    if isinstance(kept, Tensor):
        return Reading(own, lambda targets: TensorSamples(kept, targets, outcome=wishes.asked))
    source, outcome = kept or dataset, wishes.asked
    samples = MapSamples(source, own.numbers, collate_fn=wishes.collate_fn, target_key=target, outcome=outcome)
    samples.batch(torch.arange(min(n, 2)))  # a function of the user's may not take such samples
    return Reading(own, samples.relabel)


def _sample(dataset: Any, row: int) -> Any:
    try:
        return dataset[row]
    except ConfigurationError:
        raise
    except Exception as error:  # whatever a data set of the user's may do
        raise unreadable(dataset, row, error) from error


def _input(sample: Any, target: Key) -> Any:
    """The one input that is a tensor, if there is one."""
    entry = input_entry(sample, target)
    return None if entry is None else sample[entry]


def _draw(n: int, count: int) -> list[int]:
    """Up to `count` of n samples, the same ones every time."""
    return torch.randperm(n, generator=generator(0, "samples that are looked at"))[:count].tolist()


def _stays(dataset: Any, whose: str, target: Key, form: Callable[[Any], Any]) -> bool:
    """Whether samples are the same when they are read again; classes must be."""
    before, chosen = global_draws(), _draw(len(dataset), TWICE)
    once, again = ([_sample(dataset, row) for row in chosen] for _ in range(2))
    for row, one, other in zip(chosen, once, again, strict=True):
        if not _same(one[target], other[target]):
            raise ConfigurationError(
                f"the class of sample {row} of the {whose} data is another when it is read again; classes must stay, so draw "
                "them in training_step if they shall not"
            )
    return global_draws() == before and all(_same(form(a), form(b)) for a, b in zip(once, again, strict=True))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, (Tensor, np.ndarray)):
        one, other = torch.as_tensor(one).to_dense(), torch.as_tensor(other).to_dense()
        return one.shape == other.shape and torch.equal(one, other)
    try:
        return type(one) is type(other) and bool(one == other or one != one)
    except Exception:  # things that cannot be compared
        return False


def _room(first: Any, target: Key, n: int, wishes: Wishes) -> Tensor | list[Any] | None:
    """Room for what is read, where it shall be kept: (n, ...) for inputs of pairs, a list for samples of other forms."""
    inputs = [value for key, value in _entries(first) if key != target]
    if not wishes.joined_by_torch or wishes.images is False or not all(isinstance(value, Kept) for value in inputs):
        return None
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    if not all(map(_can_be_held, tensors)):
        return None
    size = sum(value.nbytes if isinstance(value, Tensor) else len(str(value)) for value in inputs)
    if wishes.images is None and n * size > HELD_BYTES:
        return None
    if type(first) in (tuple, list) and len(first) == 2 and target == 1 and tensors:
        return tensors[0].new_empty((n, *tensors[0].shape))
    return []


def _can_be_held(tensor: Tensor) -> bool:
    """Whether rows can be taken from many such tensors in one, without a graph behind them."""
    return tensor.layout is torch.strided and not tensor.requires_grad


def _entries(sample: Any) -> list[tuple[Key, Any]]:
    return list(sample.items()) if isinstance(sample, Mapping) else list(enumerate(sample))


def _own(dataset: Any, whose: str, wishes: Wishes) -> Stated | None:
    """The classes that a data set states for all samples at once, with their names where it has some."""
    values, names = _attributes(dataset)
    if values is None or len(values) != len(dataset):
        return None
    stated = wishes.read(values, f"the attribute `targets` of the {whose} data")
    return replace(stated, names=names) if stated.kind == "numbers" else stated


def _attributes(dataset: Any) -> tuple[Any, tuple[str, ...]]:
    """The attribute `targets`, if it is the data set's own and has one entry per sample, and the names of its classes."""
    if type(dataset) is Subset:
        values, names = _attributes(dataset.dataset)
        return None if values is None else [values[i] for i in dataset.indices], names
    if type(dataset) is ConcatDataset:
        parts = [_attributes(part) for part in dataset.datasets]
        if any(values is None for values, _ in parts) or len({names for _, names in parts}) > 1:
            return None, ()
        return [value for values, _ in parts for value in values], parts[0][1]
    if inspect.getattr_static(dataset, "target_transform", None) is not None:
        return None, ()  # they are the classes before the transform
    values, names = _static(dataset, "targets"), _static(dataset, "classes")
    if not isinstance(values, (Tensor, np.ndarray, Sequence)) or isinstance(values, str) or len(values) != len(dataset):
        values = None
    named = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return values, tuple(names) if named else ()


def _static(dataset: Any, name: str) -> Any:
    """An attribute that is the data set's own, not one that it passes on from another; None where there is none."""
    if inspect.getattr_static(dataset, name, None) is None:
        return None
    try:
        return getattr(dataset, name)
    except Exception:  # a property may do anything
        return None


def _agrees(own: Stated, rows: Sequence[int], classes: list[Any], whose: str, wishes: Wishes) -> bool:
    """Whether samples have the classes that the data set states for them; `ConfigurationError` if they are of another kind."""
    try:
        said = wishes.read(classes, f"the {whose} data")
    except ConfigurationError:
        return False  # reading all classes tells the number of the sample
    if said.kind != own.kind:
        raise ConfigurationError(
            f"the {whose} data state their classes as {own.kind} in `targets`, but as {said.kind} in their samples; correct "
            "that attribute, or remove it"
        )
    stated = own.numbers[torch.tensor(rows)]
    if own.kind == "texts":
        return [own.names[i] for i in stated] == [said.names[i] for i in said.numbers]
    return own.width == said.width and torch.equal(stated, said.numbers)


def _check_alike(first: dict[Key, Any], sample: dict[Key, Any], row: int, whose: str) -> None:
    """Raise `ConfigurationError` unless a sample's tensors are of the kinds of the first's, as batches need."""
    for key in first | sample:
        (shape, dtype), (other, found) = (part.get(key, (None, None)) for part in (first, sample))
        if shape != other:
            _refuse_shapes(whose, row, shape, other)
        if dtype != found:
            raise ConfigurationError(
                f"samples 0 and {row} of the {whose} data have entries of {dtype} and {found}; bring them to one type, such as "
                "floats throughout"
            )


def _refuse_shapes(whose: str, row: int, expected: Any, found: Any) -> None:
    raise ConfigurationError(
        f"samples 0 and {row} of the {whose} data have entries of shapes {expected} and {found}, which no batch holds as they "
        "are; bring samples to one shape (pictures by resizing), or pass collate_fn=, a function that joins a list of samples, "
        "for example by padding"
    )


def _check_picture(value: Any, whose: str) -> None:
    if not is_picture(value):
        found = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ConfigurationError(
            f"images is True, but the input of sample 0 of the {whose} data is {found}, no picture (channels, rows, columns) "
            "of bytes or floats; transform it, or leave images out"
        )
