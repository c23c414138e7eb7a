"""Files that whoever reads them finds whole, also while a run writes them and after one was killed."""

import json
import math
from pathlib import Path
from typing import Any


class RoundLines:
    """Adds entries to a JSON-lines file, each round's once.

    A run that was killed and resumed comes by some rounds again; by the law of equal bits their entries are the ones that are
    there. A last line that a kill cut off is removed.

    Args:
        path: the file; made if it is not there.
        afresh: empty the file first, for a run that starts at round 0.

    Example:
        >>> lines = RoundLines(Path("metrics.jsonl"), afresh=True)
        >>> lines.add({"round": 1, "acc": 0.5})
        >>> lines.add({"round": 1, "acc": 0.5})  # already there
        >>> read_lines(Path("metrics.jsonl"))
        [{'round': 1, 'acc': 0.5}]
    """

    def __init__(self, path: Path, *, afresh: bool) -> None:
        self.path = path
        if afresh or not path.exists():
            path.write_text("")
        else:
            text = path.read_bytes()
            with path.open("r+b") as file:
                file.truncate(text.rfind(b"\n") + 1)
        self.rounds = {entry["round"] for entry in read_lines(path)}

    def add(self, entry: dict[str, Any]) -> None:
        """Add an entry with the key `round`, unless one of that round is there. NaN and infinity become null."""
        if entry["round"] in self.rounds:
            return
        self.rounds.add(entry["round"])
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
        with self.path.open("a") as file:  # one write of one line, so that readers see it whole
            file.write(json.dumps(plain) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of such a file, also while it is written; none if there is no file."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines() if line]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is no such file or it is not one."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_whole(path: Path, text: str) -> None:
    """Write a file so that readers see the old text or the new, never a part."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)
