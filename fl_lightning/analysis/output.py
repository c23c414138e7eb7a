"""How an analysis is handed over: a table on the screen, numbers in files, a picture where there is one."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.plain_text import csv_cell

DOTS_PER_INCH = 90


class Output:
    """A folder of results.

    Args:
        folder: is made if it is not there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"output: the folder {folder} cannot be made: {error}; give another") from error

    def table(self, title: str, rows: Sequence[Mapping[str, Any]], name: str | None = None) -> None:
        """Print rows of equal keys, and write them to `<name>.csv` if a name is given."""
        table = Table(*map(escape, rows[0]), title=Text(title))
        for row in rows:
            table.add_row(*(Text(shown(value)) for value in row.values()))
        Console().print(table)
        if name is not None:
            self.rows(name, rows)

    def rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows of equal keys to `<name>.csv`."""
        with self._path(f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([csv_cell(value) for value in row] for row in (rows[0], *(row.values() for row in rows)))

    def numbers(self, name: str, values: Any) -> None:
        """Write everything to `<name>.json`; what is no number becomes null."""
        self._path(f"{name}.json").write_text(json.dumps(plain(values), indent=1) + "\n")

    def figure(self, name: str, panels: int = 1, width: float = 5.0, height: float = 3.4) -> Picture:
        """A picture to draw into, written to `<name>.png` at the end of its `with` block."""
        return Picture(self._path(f"{name}.png"), panels, width, height)

    def _path(self, name: str) -> Path:
        return self.folder / name

    def close(self) -> None:
        """Say where everything is."""
        Console().print(f"Results: {self.folder}", soft_wrap=True)


class Picture:
    """Panels side by side: `with picture as axes`."""

    def __init__(self, path: Path, panels: int, width: float, height: float) -> None:
        from matplotlib.figure import Figure  # without pyplot, so without a display; here, as it is slow to import

        self.path = path
        self.figure = Figure(figsize=(panels * width, height), layout="constrained")
        self.axes = list(self.figure.subplots(1, panels, squeeze=False)[0])

    def __enter__(self) -> list[Any]:
        for axis in self.axes:
            axis.grid(alpha=0.3)
        return self.axes

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            self.figure.savefig(self.path, dpi=DOTS_PER_INCH)


def shown(value: Any) -> str:
    """A cell of a table: four significant digits."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.4g}"


def plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
