"""What `validate` and `test` found, data set by data set."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table


def show_evaluation(rows: Iterable[tuple[str, str, float]], title: str) -> None:
    """Print a line per metric: the data set that it was measured on, its name, its value."""
    table = Table("data set", "metric", "value", title=title)
    for data_set, metric, value in rows:
        table.add_row(data_set, metric, f"{value:.4f}")
    Console().print(table, markup=False)
