"""The evaluations of a run, one after the other, and their means."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

LAST = 10
"""Evaluations that a mean is taken over, at most: a single ASR swings from one evaluation to the next."""

FEWEST = 3
"""Evaluations without which there is no such mean."""

Entry = dict[str, float]
"""An evaluation: `round`, the rounds done by then, and every metric that was there to measure."""


@dataclass
class History:
    """The evaluations so far.

    Each is written as JSON once, when it comes: a checkpoint takes the text, so that the time of a round does not grow with the
    rounds before it.

    Attributes:
        entries: in order.
        closing: the round that was evaluated only because the run ended there; None where there is none.
    """

    entries: list[Entry] = field(default_factory=list)
    closing: int | None = None
    _lines: list[str] = field(default_factory=list)

    def add(self, entry: Mapping[str, float]) -> Entry:
        """Add an evaluation without what is not finite: nothing was there to measure."""
        kept = {name: value for name, value in entry.items() if math.isfinite(value)}
        self.entries.append(kept)
        self._lines.append(json.dumps(kept) + "\n")
        return kept

    def go_on(self) -> None:
        """Forget the evaluation that the run has only because it ended: it goes on as if nothing had stopped it."""
        if self.entries and self.closing == self.entries[-1]["round"]:
            self.entries.pop()
            self._lines.pop()
        self.closing = None

    def clear(self) -> None:
        self.entries, self.closing, self._lines = [], None, []

    @property
    def text(self) -> str:
        """The evaluations as JSON lines."""
        return "".join(self._lines)

    def load(self, text: str) -> None:
        """Take over what `text` gave."""
        self.clear()
        for line in text.splitlines():
            self.add(json.loads(line))

    def last(self, name: str) -> float | None:
        """A metric's value at the last evaluation."""
        return self.entries[-1].get(name) if self.entries else None

    def rounds(self, name: str) -> list[int]:
        """The last rounds, ten at most, at which a metric was measured."""
        return [int(entry["round"]) for entry in self.entries if name in entry][-LAST:]

    def mean(self, name: str) -> float | None:
        """A metric's mean over `rounds`; None for fewer than three.

        >>> history = History()
        >>> for t in (1, 2, 3):
        ...     _ = history.add({"round": t, "acc": t / 4})
        >>> history.mean("acc"), history.mean("asr")
        (0.5, None)
        """
        values = [entry[name] for entry in self.entries if name in entry][-LAST:]
        return sum(values) / len(values) if len(values) >= FEWEST else None
