"""Random numbers that depend on what they are for, never on who draws them or when.

A run must give the same bits on any number of ranks and after any resume. So there is no random state that advances:
every draw takes a fresh generator keyed by (seed, purpose, keys...), for example (seed, "cohort", round) or
(seed, "batches", round, client).
"""

import hashlib
import logging
import pickle
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

log = logging.getLogger(__name__)


def derive_seed(seed: int, purpose: str, *keys: int) -> int:
    """A 32-bit seed for one purpose, as torch's CPU generator reads no more than 32 bits.

    Args:
        seed: the experiment's seed.
        purpose: what the draw is for, in words.
        keys: what tells this draw from others of the same purpose: round, client, coordinate block.

    Returns:
        An integer in [0, 2**32).
    """
    text = "\x1f".join([str(seed), purpose, *(str(int(key)) for key in keys)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def generator(seed: int, purpose: str, *keys: int) -> torch.Generator:
    """A CPU generator for one purpose; the same arguments always give the same stream.

    >>> torch.equal(torch.rand(2, generator=generator(0, "x", 1)), torch.rand(2, generator=generator(0, "x", 1)))
    True
    """
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *keys))


def drawn_by_chance() -> bool:
    """Whether torch's global generator began with a seed of the system's: those have 64 bits, people's fewer than 33."""
    return torch.default_generator.initial_seed() >= 2**32


def warn_of_chance(seed: int) -> None:
    """Say that the initial weights were drawn by chance."""
    log.warning(
        "torch was not seeded before the client was made: unless its weights were loaded, or drawn from a seed of its own, the "
        "next run starts from others, whatever Federation(seed=%d) says; call L.seed_everything(%d) first",
        seed,
        seed,
    )


def seed_global_generators(seed: int) -> None:
    """Seed what a client's own code may draw from: dropout, data set transforms."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  the generator that third-party transforms use
    # torch.manual_seed would do the same, but formats a stack trace per kind of device that was never used.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def seed_source(source: Any, seed: int) -> None:
    """Seed a generator of NumPy's, PyTorch's or Python's in place.

    >>> draws = np.random.default_rng()
    >>> seed_source(draws, 3)
    >>> bool(draws.random() == np.random.default_rng(3).random())
    True
    """
    if isinstance(source, np.random.Generator):
        source.bit_generator.state = type(source.bit_generator)(seed).state  # pyrefly: ignore
    elif isinstance(source, torch.Generator):
        source.manual_seed(seed)
    else:
        source.seed(seed)


def bookmark(source: Any) -> Callable[[], Any]:
    """What has a generator of NumPy's, PyTorch's or Python's go on from where it is now.

    >>> draws = random.Random(3)
    >>> go_back = bookmark(draws)
    >>> first = draws.random()
    >>> go_back(), draws.random() == first
    (None, True)
    """
    if isinstance(source, np.random.Generator):
        return partial(setattr, source.bit_generator, "state", source.bit_generator.state)
    if isinstance(source, random.Random):
        return partial(source.setstate, source.getstate())
    return partial(source.set_state, source.get_state())


def global_draws() -> bytes:
    """The state of these generators; equal before and after where nothing was drawn from them."""
    states = [random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()]  # noqa: NPY002
    if torch.cuda.is_initialized():
        states += [state.numpy() for state in torch.cuda.get_rng_state_all()]
    return pickle.dumps(states)
