"""Results that a callback has to add to the record of a run."""

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class HasRunResults(Protocol):
    """A callback with something of its own for `run.json`."""

    def run_results(self) -> dict[str, Any]:
        """Entries for `run.json` as JSON can hold them; on rank 0, at any time."""


def run_results(callbacks: Iterable[Any]) -> dict[str, Any]:
    """The entries of all callbacks that have some."""
    return {key: value for of in callbacks if isinstance(of, HasRunResults) for key, value in of.run_results().items()}
