"""The classes of samples, in whatever form a data set states them: numbers, texts or one-hot rows.

What is unambiguous is taken: whole numbers of any type, also as floats or in a shape of (1,); texts, numbered in a stated
order; one-hot rows, by the place of their 1. All else (fractions, nothing, masks, several classes per sample) is refused by the
number of the sample, as a class that was guessed trains a wrong model without a word.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from fl_lightning.errors import ConfigurationError

LARGEST = 2**31
"""Class numbers from here on are no classes, but measurements or identifiers."""

MANY = 20
"""Samples from which on texts that hardly ever come twice are no classes."""


@dataclass(frozen=True)
class Stated:
    """What a data set says of its samples' classes.

    Attributes:
        kind: how they are stated; "values" of what is no class.
        numbers: (n,) int64; of texts, places in `names`; of values, these.
        names: of texts, the distinct ones in their order; of numbers, what classes 0, 1, ... are called, where that is known.
        width: entries of a one-hot row, thus the number of classes; 0 for other kinds.
    """

    kind: Literal["numbers", "texts", "one-hot rows", "values"]
    numbers: Tensor
    names: tuple[str, ...] = ()
    width: int = 0


def read_classes(values: Any, where: str) -> Stated:
    """The classes in a data set's own form.

    Args:
        values: n classes: a tensor, an array or a sequence of numbers, texts, or one-hot rows.
        where: what they were read from, for messages.

    Raises:
        ConfigurationError: if the class of some sample is none; the message has its number.

    Example:
        >>> read_classes(["cat", "ant", "cat"], "the training data")
        Stated(kind='texts', numbers=tensor([1, 0, 1]), names=('ant', 'cat'), width=0)
        >>> read_classes(torch.eye(3), "the training data").numbers
        tensor([0, 1, 2])
    """
    values = _as_one(values)
    if isinstance(values, Tensor):
        return _of_tensor(values, where)
    entries = [_entry(value) for value in values]
    for i, entry in enumerate(entries):
        if entry is None or (isinstance(entry, str) and not entry.strip()):
            _refuse(where, i, values[i], "which says nothing; remove the sample or give it a class")
        if not isinstance(entry, (int, float, str, Tensor)):
            _refuse(where, i, values[i], f"a {type(values[i]).__name__}; give one class number per sample")
        if isinstance(entry, str) != isinstance(entries[0], str):
            _refuse(where, i, values[i], f"but that of sample 0 is {_short(values[0])}; state all as numbers or all as texts")
    if entries and isinstance(entries[0], str):
        names = in_order(entries)
        if len(entries) >= MANY and len(names) > len(entries) / 2:
            raise ConfigurationError(
                f"the classes in {where} are texts, such as {_short(entries[0])}, but {len(names)} different ones for "
                f"{len(entries)} samples; say which part of a sample is its class with target_key="
            )
        place = {name: i for i, name in enumerate(names)}
        return Stated("texts", torch.tensor([place[entry] for entry in entries]), names)
    shapes = [tuple(entry.shape) if isinstance(entry, Tensor) else () for entry in entries]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            _refuse(where, i, values[i], f"of shape {shape}, but that of sample 0 is of shape {shapes[0]}; state all alike")
    if entries and isinstance(entries[0], Tensor):
        return _of_tensor(torch.stack([torch.as_tensor(entry).double() for entry in entries]), where)
    return _of_tensor(torch.tensor([_bounded(entry) for entry in entries], dtype=torch.float64), where)


def in_order(texts: Sequence[str]) -> tuple[str, ...]:
    """The distinct texts in the order that gives classes their numbers: sorted, as numbers if all of them are whole numbers.

    >>> in_order(["dog", "cat", "dog"]), in_order(["10", "9"])
    (('cat', 'dog'), ('9', '10'))
    """
    distinct = set(texts)
    by_number = all(text.strip().isdecimal() for text in distinct)
    return tuple(sorted(distinct, key=lambda text: (int(text), text) if by_number else (0, text)))


def agreed(
    train: Stated, test: Stated, num_classes: int | None, class_names: Sequence[str] = ()
) -> tuple[Tensor, Tensor, int, tuple[str, ...]]:
    """Training and test classes by one numbering, how many classes there are, and what they are called.

    Args:
        train, test: what the two data sets state.
        num_classes: left out, as many as `class_names`, one-hot rows or names say, else one more than the largest in training.
        class_names: what classes 0, 1, ... are called, which is the order of texts; left out, the data sets' own.

    Raises:
        ConfigurationError: if the two data sets state classes in different ways, or call them by different names.
    """
    if train.kind != test.kind:
        raise ConfigurationError(
            f"the training data state their classes as {train.kind}, the test data as {test.kind}, so one numbering cannot "
            "hold for both; state both alike, for example as whole numbers from 0"
        )
    if num_classes is not None and (isinstance(num_classes, bool) or num_classes != int(num_classes) or num_classes < 1):
        raise ConfigurationError(f"num_classes must be a whole number, at least 1, got {num_classes!r}")
    names = tuple(class_names)
    if len(set(names)) < len(names):
        raise ConfigurationError(f"class_names holds a name twice: {_short(list(names))}; give every class a name of its own")
    if num_classes is not None and len(names) not in (0, num_classes):
        raise ConfigurationError(f"class_names has {len(names)} names, but num_classes is {num_classes}; leave one of them out")
    if train.kind == "one-hot rows":
        if train.width != test.width or num_classes not in (None, train.width) or len(names) not in (0, train.width):
            raise ConfigurationError(
                f"one-hot rows have {train.width} entries in the training data and {test.width} in the test data, and "
                f"num_classes is {num_classes or len(names) or 'left out'}; all must be the same number"
            )
        return train.numbers, test.numbers, train.width, names
    if train.kind == "texts":
        known = names or (in_order([*train.names, *test.names]) if num_classes is not None else train.names)
        numbers = [_by_name(part, known, whose) for part, whose in ((train, "training"), (test, "test"))]
        return numbers[0], numbers[1], num_classes or len(known), known
    if not names:
        if train.names and test.names and train.names != test.names:
            raise ConfigurationError(
                f"classes 0, 1, ... are called {_short(list(train.names))} in the training data, but "
                f"{_short(list(test.names))} in the test data; number both alike (for example, make both from the same list of "
                "classes)"
            )
        names = train.names or test.names
        largest = max(int(part.numbers.max()) for part in (train, test))
        if len(names) <= largest or num_classes not in (None, len(names)):
            names = ()  # of other classes than these
    return train.numbers, test.numbers, num_classes or len(names) or int(train.numbers.max()) + 1, names


def _by_name(stated: Stated, known: Sequence[str], whose: str) -> Tensor:
    """Numbers of texts by their place in `known`."""
    place = {name: i for i, name in enumerate(known)}
    for i, name in enumerate(stated.names):
        if name not in place:
            first = int(torch.nonzero(stated.numbers == i)[0])
            raise ConfigurationError(
                f"the class of sample {first} in the {whose} data is {name!r}, which is none of the {len(known)} classes "
                f"{_short(list(known))}; correct it, or name all classes by class_names="
            )
    return torch.tensor([place[name] for name in stated.names])[stated.numbers]


def _as_one(values: Any) -> Any:
    """One tensor of all classes where they fit into one, else a list."""
    if isinstance(values, Tensor):
        return values
    if isinstance(values, np.ndarray):
        return torch.from_numpy(values.astype(np.float64)) if values.dtype.kind in "biuf" else values.tolist()
    values = list(values)
    kinds = {type(value) for value in values}
    if kinds and kinds <= {int, bool, float}:
        return torch.tensor([_bounded(value) for value in values], dtype=torch.float64)
    if all(isinstance(value, Tensor) for value in values) and len({value.shape for value in values}) == 1:
        return torch.stack([value.detach().cpu() for value in values])
    return values


def _entry(value: Any) -> Any:
    """One class as a number, a text or a tensor; other things as they are."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(value.astype(np.float64))
    elif isinstance(value, (list, tuple)) and value and all(isinstance(entry, (int, float, np.number)) for entry in value):
        value = torch.tensor(value, dtype=torch.float64)
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return value.item() if value.numel() == 1 and not value.is_complex() else value
    return value


def _bounded(value: float) -> float:
    """A Python number as float64, which is exact for class numbers; one beyond all bounds is infinite."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _of_tensor(values: Tensor, where: str) -> Stated:
    """Classes from one tensor: (n,) or (n, 1) numbers, or (n, C) one-hot rows."""
    if values.ndim == 0:
        raise ConfigurationError(f"{where} state one class, {_short(values.item())}, for all; give one per sample")
    values = values.detach().cpu()
    while values.ndim > 1 and values.shape[-1] == 1:
        values = values.squeeze(-1)
    if values.is_complex() or values.ndim > 2:
        _refuse(
            where,
            0,
            values[0].tolist(),
            f"of shape {tuple(values.shape[1:])}, such as a mask; give one class number per sample",
        )
    values = values.double()
    if values.ndim == 2:
        good = ((values == 0) | (values == 1)).all(1) & (values.sum(1) == 1)
        if not good.all():
            i = int((~good).nonzero()[0])
            _refuse(
                where,
                i,
                values[i].tolist(),
                "which is no class number and no one-hot row (one 1, all else 0); give either, or say by outcome= what else is "
                "asked for: MultiLabel(), Tokens() or Regression()",
            )
        return Stated("one-hot rows", values.argmax(1), width=values.shape[1])
    good = (values == values.round()) & (values >= 0) & (values < LARGEST)
    if not good.all():
        i = int((~good).nonzero()[0])
        _refuse(
            where, i, values[i].item(), "which is no class; classes are whole numbers from 0 (others: outcome=Regression())"
        )
    return Stated("numbers", values.long())


def _refuse(where: str, sample: int, value: Any, why: str) -> NoReturn:
    raise ConfigurationError(f"the class of sample {sample} in {where} is {_short(value)}, {why}")


def _short(value: Any) -> str:
    """A value on one line."""
    return " ".join(reprlib.repr(value).split())
