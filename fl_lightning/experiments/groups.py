"""Which cells of a sweep share a picture or a table: those that differ in one axis, or in two, alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fl_lightning.experiments.plain_text import is_number, one_line
from fl_lightning.experiments.planned import UNVARIED
from fl_lightning.experiments.results import Results, records

RULES = ("rule", "rules", "aggregator", "aggregators", "defence", "defences", "defense", "defenses")
"""Names of an axis whose labels are compared with each other, whatever other axes there are."""

ATTACKS = ("attack", "attacks", "attacker", "attackers", "backdoor", "backdoors")
"""Names of an axis that is set against it: its labels are no competitors."""


@dataclass(frozen=True)
class Group:
    """Cells that share a picture or a table.

    Args:
        rows: the axis that is compared; empty where a sweep has no axis but the seed.
        columns: the axis that is set against it; empty where there is none.
        further: the label of every other axis that the sweep varies.
        cells: (label of the rows, label of the columns) -> the cell's position in the sweep; labels in the sweep's order.
    """

    rows: str
    columns: str
    further: dict[str, str]
    cells: dict[tuple[str, str], int]

    @property
    def row_labels(self) -> list[str]:
        return list(dict.fromkeys(row for row, _ in self.cells))

    @property
    def column_labels(self) -> list[str]:
        return list(dict.fromkeys(column for _, column in self.cells))

    @property
    def name(self) -> str:
        """What tells it from the sweep's other groups, in words; empty where there is no other.

        >>> Group("rule", "", {"task": "digits", "alpha": "0.25"}, {}).name
        'task digits, alpha 0.25'
        """
        return ", ".join(f"{axis} {one_line(label)}" for axis, label in self.further.items())

    @property
    def compares(self) -> str:
        """By what it shows cells, in words."""
        return " and ".join(filter(None, (self.rows, self.columns))) or "seed"

    @property
    def suffix(self) -> str:
        """The same for a file's name: labels alone where they are words.

        >>> Group("rule", "", {"task": "digits", "alpha": "0.25"}, {}).suffix
        'digits-alpha 0.25'
        """
        return "-".join(f"{axis} {label}" if is_number(label) else label for axis, label in self.further.items())


def groups(results: Results, *, two_axes: bool) -> list[Group]:
    """The groups of a sweep, in its order.

    The rules are compared; where no axis is called so, the first axis that is no attack. The axis that is set against them
    is that of the attacks, or else the next. Where a sweep varies one axis at a time, it is looked at axis by axis, the others
    at the centre.

    Args:
        results: the sweep.
        two_axes: whether a group differs in two axes, where there are two, or in one.
    """
    labels = [{axis: str(cell[axis]) for axis in results.axes} for cell in records(results.cells)]
    found: dict[tuple[object, ...], Group] = {}
    for center, cells in slices(results, labels):
        varied = [axis for axis in results.axes if len({labels[cell][axis] for cell in cells}) > 1]
        rows, columns = compared(varied or results.axes, center)
        columns = columns if two_axes and varied else ""
        further = [axis for axis in varied if axis not in (rows, columns)]
        by_label: dict[tuple[str, ...], dict[tuple[str, str], int]] = {}
        for cell in cells:
            of_group = by_label.setdefault(tuple(labels[cell][axis] for axis in further), {})
            of_group[labels[cell].get(rows, UNVARIED), labels[cell].get(columns, "")] = cell
        for key, of_group in by_label.items():
            group = Group(rows, columns, dict(zip(further, key, strict=True)), of_group)
            found.setdefault((rows, columns, *of_group.values()), group)  # the centre occurs once per axis
    return list(found.values())


def slices(results: Results, labels: Sequence[dict[str, str]]) -> Iterator[tuple[str, list[int]]]:
    """An axis that is varied about the centre, and the cells at the others' centre; all cells where there is no centre."""
    for varied in results.center or [""]:
        others = {axis: label for axis, label in results.center.items() if axis != varied}
        yield varied, [i for i, own in enumerate(labels) if all(own[axis] == label for axis, label in others.items())]


def compared(axes: Sequence[str], center: str = "") -> tuple[str, str]:
    """Which of these axes are rows and columns; empty where there is none.

    >>> compared(["task", "rule", "attack"]), compared(["attack", "tau"]), compared(["tau", "rule"], center="tau"), compared([])
    (('rule', 'attack'), ('tau', 'attack'), ('rule', 'tau'), ('', ''))
    """
    rules = [axis for axis in axes if axis.lower() in RULES]
    attacks = [axis for axis in axes if axis.lower() in ATTACKS]
    centers = [axis for axis in axes if axis == center]
    rows = next(iter([*rules, *centers, *(axis for axis in axes if axis not in attacks), *axes]), "")
    return rows, next((axis for axis in [*centers, *attacks, *axes] if axis != rows), "")
