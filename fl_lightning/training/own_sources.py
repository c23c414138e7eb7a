"""What clients and their data draw from beside the global generators, so that no client's draws depend on who came before.

Generators that they hold themselves (`self.rng = np.random.default_rng(0)`) are found and seeded for every client, as the
global ones are. What cannot be found shows itself: the first client is trained twice, from the same weights and draws. Where it
ends otherwise the second time, the data and the global names that the user's functions use are put back after every client from
then on, and what cannot be put back is named.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import lightning as L
from torch import Tensor

from fl_lightning.data.module import FederatedDataModule
from fl_lightning.errors import enumerated
from fl_lightning.modules.bits import same_bits
from fl_lightning.modules.fingerprints import described, fingerprint
from fl_lightning.modules.kept_python import SEARCHED_OF_DATA, KeptPython
from fl_lightning.seeding import derive_seed, seed_source

log = logging.getLogger(__name__)


class OwnSources:
    """Random generators that belong to a client's module or to its data, and other state of the data and of global names.

    Args:
        module: the client.
        data: what clients train on, after its setup.

    Attributes:
        generators: those that have been found, by path.
    """

    def __init__(self, module: L.LightningModule, data: FederatedDataModule) -> None:
        self.module, self.data = module, data
        self.generators: dict[str, Any] = {}
        self.iterators: set[str] = set()
        self.found: KeptPython | None = None
        self.kept: KeptPython | None = None
        self.start: KeptPython | None = None
        self.search()

    def __getstate__(self) -> dict[str, Any]:
        """For copies: what is kept belongs to the very objects."""
        return {**vars(self), "found": None, "kept": None, "start": None}

    def search(self) -> bool:
        """Look for generators; whether there are new ones, as some are made at their first use."""
        roots = {"client": self.module, "data": self.data.train, "data.root": self.data.root_samples}
        self.found = KeptPython(roots, values=False, searched=SEARCHED_OF_DATA, follow=True)
        for path in self.found.iterators.keys() - self.iterators:
            log.warning("%s is an iterator, which goes on from client to client; make one where it is used", path)
        self.iterators.update(self.found.iterators)
        new = self.found.generators.keys() - self.generators.keys()
        self.generators = self.found.generators
        return bool(new)

    def seed(self, seed: int, purpose: str, *keys: int) -> None:
        """Seed them all by (seed, purpose, their path, keys)."""
        for path, source in self.generators.items():
            seed_source(source, derive_seed(seed, f"{purpose} {path}", *keys))

    def remember(self) -> None:
        """Keep what data and global names are like before any client has trained, as they are then alike on all ranks."""
        if self.start is None:
            if self.found is None:
                self.search()
            assert self.found is not None, "search() has run"
            environment = getattr(os.environ, "_data", {})  # what Python reads; where it matters to clients, it is put back
            roots = {"data": self.data.train, "os.environ": environment, **self.found.globals}
            own = [of for part in self.module.modules() for of in (part, *part._parameters.values(), *part._buffers.values())]
            self.start = KeptPython(roots, searched=SEARCHED_OF_DATA, but=own)

    def put_back(self) -> None:
        """Undo what training has changed in data and global names, where that has been seen to matter."""
        if self.kept is not None:
            self.kept.restore()

    def prove(self, train: Callable[[], Any], ended: Callable[[], list[Tensor]], start_anew: Callable[[], None]) -> Any:
        """Train a client more than once and see that it ends the same; else find out why, and mend or name it.

        Args:
            train: does it, from the weights of now and the same draws.
            ended: copies of what it ends with.
            start_anew: makes the weights those of now again.

        Returns:
            What `train` gave the last time, whose weights are the module's now.
        """

        def once() -> tuple[Any, list[Tensor]]:
            result = train()
            return result, ended()

        def again() -> tuple[Any, list[Tensor]]:
            start_anew()
            self.put_back()
            return once()

        self.remember()
        assert self.found is not None, "search() has run"
        unkept = {path: (value, fingerprint(value)) for path, value in self.found.unkept.items()}
        start, self.start = self.start, None
        _, before = once()
        if self.search():
            _, before = again()
        result, after = again()
        if equal(before, after):
            return result
        assert start is not None
        changed = list(start.changes())
        self.kept = start
        start_anew()
        self.put_back()
        moved = [described(path, value) for path, (value, was) in unkept.items() if fingerprint(value) != was]
        _, before = again()
        result, after = again()
        if equal(before, after) and changed:
            log.warning(
                "training a client changes %s, and what the next one comes to depends on it; it is put back after every "
                "client%s",
                enumerated(changed),
                f". {enumerated(moved)} changes, too, and cannot be put back" if moved else "",
            )
            return result
        self.kept = None
        log.warning(
            "a client that is trained twice from the same weights and draws ends with other weights, so that results depend on "
            "the number of ranks: %s",
            f"{enumerated(moved)} changes as it trains, and cannot be put back; do without, or keep what it holds in "
            "attributes of the client"
            if moved
            else "it or its data draw from what cannot be seeded"
            + (f", and {enumerated(changed)} changes as it trains" if changed else "")
            + ". Draw from the global generators of torch, numpy or random, or keep the generator as an attribute",
        )
        return result


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether all tensors are the same to the bit, NaN included."""
    return all(same_bits(a, b) for a, b in zip(some, others, strict=True))
