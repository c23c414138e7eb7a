"""Evaluation batches that depend on nothing but their number, and leave the data as they were.

Ranks read different batches. Data sets and functions that join samples may draw, count or remember: what they draw from is
seeded for every batch, and what reading has changed is put back after it.
"""

from __future__ import annotations

from functools import partial
from types import BuiltinFunctionType, MethodType
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from fl_lightning.data.base import Samples, TensorSamples
from fl_lightning.kept_python import SEARCHED_OF_DATA, KeptPython
from fl_lightning.seeding import bookmark, derive_seed, seed_global_generators, seed_source


class SteadyReading:
    """Reads a set's batches, each as if nothing had been read before.

    Args:
        samples: the evaluation set, of whose Python state a copy is kept, but for what only fills a cache.
        seed: the experiment's seed.
        which: the number of the set among those evaluated.
    """

    def __init__(self, samples: Samples, seed: int, which: int) -> None:
        self.samples, self.seed, self.which = samples, seed, which
        self.kept = None if is_fixed(samples) else KeptPython({"data": samples}, caches=True, searched=SEARCHED_OF_DATA)
        sources = {} if self.kept is None else self.kept.generators
        self.sources = [(path, source, bookmark(source)) for path, source in sources.items()]

    def batch(self, indices: Tensor, number: int) -> Any:
        """The samples at `indices`, which are the set's batch `number`."""
        if self.kept is None:
            return self.samples.batch(indices)
        with isolate_rng():
            seed_global_generators(derive_seed(self.seed, "evaluation data", self.which, number))
            for path, source, _ in self.sources:
                seed_source(source, derive_seed(self.seed, f"evaluation {path}", self.which, number))
            try:
                return self.samples.batch(indices)
            finally:
                self.kept.restore()
                for _, _, go_back in self.sources:
                    go_back()


def is_fixed(samples: Samples) -> bool:
    """Whether all there is to read are tensors and this package's own functions of them."""
    if type(samples) is not TensorSamples:
        return False
    functions = [samples.prepare, *(stamp for stamp, _ in samples.stamps)]
    return all(function is None or _is_own(function) for function in functions)


def _is_own(function: object) -> bool:
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, MethodType):
        function = function.__self__
    module = getattr(function, "__module__", None) or ""
    return module.startswith("fl_lightning.") or (module == "torch" and isinstance(function, BuiltinFunctionType))
