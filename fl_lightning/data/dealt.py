"""What a partition gives, in whatever form, as one index tensor per client; what cannot be dealt out is refused."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from fl_lightning.data.partition import Partition
from fl_lightning.errors import ConfigurationError, enumerated, in_one_line
from fl_lightning.seeding import derive_seed, seed_global_generators

log = logging.getLogger(__name__)

AT_ONCE = 2**24
"""Positions that are looked at together, so that it takes little memory."""

Dealing = Partition | Callable[..., Any] | Sequence[Any] | Mapping[int, Any]
"""A partition; a function `(targets, generator, keys)` that deals as one does; or the clients' samples themselves."""


def check_dealing(partition: Any) -> None:
    """Raise `ConfigurationError` unless samples can be dealt out by this."""
    if isinstance(partition, type) or not (callable(partition) or isinstance(partition, (Sequence, Mapping))):
        found = f"the class {partition.__name__}" if isinstance(partition, type) else repr(partition)
        remedy = "IID(num_clients=10)" if not isinstance(partition, type) else f"{partition.__name__}(num_clients=10)"
        raise ConfigurationError(f"data.partition must be a partition such as {remedy}, got {found}")
    if callable(partition):
        try:
            inspect.signature(partition).bind(None, None, None)
        except TypeError as error:
            raise ConfigurationError(
                f"data.partition is called with (targets, generator, keys), but {named(partition)} does not take these: {error}"
            ) from error
        except ValueError:  # a builtin that does not say what it takes
            pass


def named(partition: Any) -> str:
    """A function's name, or the class of what is called like one."""
    return getattr(partition, "__name__", type(partition).__name__)


def deal(partition: Any, targets: Tensor, generator: torch.Generator, keys: Tensor | None) -> list[Tensor]:
    """One (n_i,) int64 tensor of positions in [0, n) per client; clients may share samples, and tensors.

    Args:
        partition: see `Dealing`. What it gives per client may be a tensor, an array or any sequence or set of whole numbers, or
            a mask of n bools; for all clients together a sequence, or a mapping from 0, 1, ... to these.
        targets, generator, keys: as a `Partition` takes them. It gets copies of the tensors, as it may write into them, and the
            global generators of torch, NumPy and Python seeded by the seed of `generator` until it is done.

    Raises:
        ConfigurationError: if that is something else, a position lies outside [0, n), or a client gets nothing.
    """
    try:
        with isolate_rng():
            seed_global_generators(derive_seed(generator.initial_seed(), "partition function"))
            copies = targets.clone(), generator, None if keys is None else keys.clone()
            dealt = partition(*copies) if callable(partition) else partition
            dealt = dealt if isinstance(dealt, (Mapping, Tensor, Sequence)) or not isinstance(dealt, Iterable) else list(dealt)
    except ConfigurationError:
        raise
    except Exception as error:  # whatever a function of the user's may do
        raise ConfigurationError(f"data.partition cannot deal out {len(targets)} samples: {in_one_line(error)}") from error
    if isinstance(dealt, Mapping):
        if sorted(dealt, key=str) != sorted(range(len(dealt)), key=str):
            raise ConfigurationError(
                f"data.partition gives a mapping of the clients {enumerated(sorted(map(str, dealt)))}; they must be 0 to "
                f"{len(dealt) - 1}"
            )
        dealt = [dealt[client] for client in range(len(dealt))]
    if not isinstance(dealt, Iterable) or isinstance(dealt, (str, bytes)) or (isinstance(dealt, Tensor) and not dealt.ndim):
        raise ConfigurationError(f"data.partition gives {type(dealt).__name__}, not a list with the samples of each client")
    parts = list(dealt)  # all of them, or the identity of one could be that of another
    first: dict[int, int] = {}  # by identity, the first client that has a part
    for client, part in enumerate(parts):
        first.setdefault(id(part), client)
    distinct = {client: _positions(client, parts[client], len(targets)) for client in first.values()}
    clients = [distinct[first[id(part)]] for part in parts]
    if not clients:
        raise ConfigurationError("data.partition gives no client at all; there must be at least one")
    empty = [client for client, part in enumerate(clients) if len(part) == 0]
    if empty:
        raise ConfigurationError(
            f"data.partition leaves {len(empty)} of {len(clients)} clients without a sample (client {empty[0]} first); use "
            "fewer clients, more data or a larger minimum per client"
        )
    check_positions(distinct, len(targets))
    return clients


def check_positions(distinct: Mapping[int, Tensor], n: int) -> None:
    """Raise `ConfigurationError` for a position outside [0, n), and warn of one that a client has twice.

    Many clients are looked at together, as one after the other takes a tenth of a millisecond for each.

    Args:
        distinct: by client, (n_i,) int64, at least one each.
        n: training samples.
    """
    numbers, repeats = list(distinct), False
    done = 0
    for group in in_groups(list(distinct.values())):
        of_group, done = numbers[done : done + len(group)], done + len(group)
        positions = torch.cat(group)
        owner = torch.repeat_interleave(torch.tensor([len(part) for part in group]))
        outside = (positions < 0) | (positions >= n)
        if outside.any():
            at = int(outside.int().argmax())
            raise ConfigurationError(
                f"data.partition gives client {of_group[owner[at]]} the sample {positions[at]}, but the {n} training samples "
                f"are 0 to {n - 1}; correct the partition, or give it to the data that it was made for"
            )
        if repeats or int(positions.bincount().max()) <= 1:
            continue
        cells = (owner * n + positions).sort().values
        twice = torch.nonzero(cells.diff() == 0)
        repeats = len(twice) > 0
        if repeats:
            of = of_group[int(cells[twice[0]]) // n]
            log.warning("data.partition gives client %d some samples several times, so they count as often", of)


def in_groups(parts: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive parts of about `AT_ONCE` positions together."""
    group, held = [], 0
    for part in parts:
        group.append(part)
        held += len(part)
        if held >= AT_ONCE:
            yield group
            group, held = [], 0
    if group:
        yield group


def _positions(client: int, part: Any, n: int) -> Tensor:
    """One client's samples as (n_i,) int64, not yet whether there are such; the tensor itself, if it is such a one."""
    if type(part) is Tensor and part.dtype == torch.int64 and part.ndim == 1 and not (part.is_cuda or part.requires_grad):
        return part
    if isinstance(part, (set, frozenset)):
        part = sorted(part)
    elif isinstance(part, np.ndarray) and part.dtype == object:
        part = part.tolist()
    elif isinstance(part, Iterable) and not hasattr(part, "__len__"):
        part = list(part)
    try:
        found = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"data.partition gives client {client} a {type(part).__name__} that is no list of whole numbers ({error})"
        ) from error
    found = found.detach().cpu()
    if found.ndim != 1:
        raise ConfigurationError(
            f"data.partition gives client {client} samples in a shape of {tuple(found.shape)}; it must be one list of positions"
        )
    if len(found) == 0:
        return found.long()
    if found.dtype == torch.bool:
        if len(found) != n:
            raise ConfigurationError(
                f"data.partition gives client {client} a mask of {len(found)} for {n} training samples; both must be the same"
            )
        return torch.nonzero(found).flatten()
    if found.is_floating_point() or found.is_complex():
        raise ConfigurationError(
            f"data.partition gives client {client} positions of {found.dtype}, the first is {found[0].item()}; they must be "
            "whole numbers"
        )
    return found.long()


def as_keys(keys: Any, n: int, test_keys: Any = None, num_test: int = 0) -> tuple[Tensor | None, Tensor | None]:
    """The groups of n training samples and of `num_test` test samples as int64; texts are numbered in sorted order."""
    if keys is None:
        if test_keys is not None:
            raise ConfigurationError("test_keys are given without keys; give those of the training samples too")
        return None, None
    train = _keys("keys", keys, n, "training")
    test = None if test_keys is None else _keys("test_keys", test_keys, num_test, "test")
    if test is not None and (train.dtype.kind == "U") != (test.dtype.kind == "U"):
        raise ConfigurationError(f"keys are {train.dtype}, but test_keys {test.dtype}; state both as numbers or both as texts")
    if train.dtype.kind == "U":
        names, train = np.unique(train, return_inverse=True)
        test = None if test is None else numbered(test, names)
    return torch.from_numpy(train.astype(np.int64)), None if test is None else torch.from_numpy(test.astype(np.int64))


def numbered(keys: np.ndarray, names: np.ndarray) -> np.ndarray:
    """(n,) int64, the place of each key in the sorted `names`, -1 for one that is none of them.

    >>> numbered(np.array(["b", "c"]), np.array(["a", "b"])).tolist()
    [1, -1]
    """
    place = np.searchsorted(names, keys).clip(max=len(names) - 1)
    return np.where(names[place] == keys, place, -1)


def _keys(name: str, keys: Any, n: int, whose: str) -> np.ndarray:
    """(n,) whole numbers or texts."""
    found = keys.detach().cpu().numpy() if isinstance(keys, Tensor) else np.asarray(keys)
    if found.dtype.kind in "UO" and all(isinstance(key, str) for key in found.flat):
        found = found.astype(str)
    if found.ndim != 1 or found.dtype.kind not in "biuU":
        raise ConfigurationError(
            f"{name} must be one whole number or text per {whose} sample, got {found.dtype} of shape {found.shape}"
        )
    if len(found) != n:
        raise ConfigurationError(f"{name} must be one per {whose} sample, got {len(found)} for {n} samples")
    return found
