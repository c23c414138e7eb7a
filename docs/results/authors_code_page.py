"""Write the tables of authors_code.md, from authors_code.json and from what our rules and attacks give on the same inputs.

python docs/results/authors_code_page.py

Blocks of authors_code.md between `<!-- from authors_code.json: NAME -->` and `<!-- end -->` are written by this script, the
rest by hand. A test compares the two.
"""

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from fl_lightning.experiments.tables import markdown

HERE = Path(__file__).parent
CASES = runpy.run_path(str(HERE / "authors_code.py"), run_name="authors_code")
Case = dict[str, Any]
Found = dict[str, list[float]]

WHOSE = {"authors": "", "copy": ", a copy of the authors'", "suite": ", not the authors'"}
SHOWN = 3
"""Numbers of a vector that the table has."""


def cases() -> list[Case]:
    """What was compared, with what the authors' code gave; None where that is no number."""
    return json.loads((HERE / "authors_code.json").read_text())


def ours() -> dict[str, Found]:
    """What ours give, by case."""
    return {name: find() for name, find in CASES["OURS"].items()}


def counted(numbers: list[float | None]) -> bool:
    """Whether numbers are of clients, coordinates or tensors."""
    return all(isinstance(number, int) for number in numbers)


def bound(case: Case, quantity: str) -> float:
    """By how much ours may be off: float32's rounding, 2^-24 of the largest number for each of `terms` terms of a sum.

    Scores come from a matrix that is inverted, whose condition number is a factor. A search stops before its aim.
    """
    numbers = case["theirs"][quantity]
    if counted(numbers):
        return 0.0
    factor = case["condition"] if quantity == "scores" else 1.0
    return factor * case["terms"] * 2.0**-24 * max(abs(number or 0.0) for number in numbers) + case["search"]


def apart(theirs: list[float | None], ours: list[float]) -> float:
    """The largest difference; infinite where there is none to take."""
    if len(theirs) != len(ours) or None in theirs:
        return float("inf")
    return max((abs(one - other) for one, other in zip(theirs, ours, strict=True) if one is not None), default=0.0)


def told(found: Found) -> str:
    """
    >>> told({"kept": [2, 5], "change": [0.25, -1.0, 0.5, 2.0]})
    'kept 2, 5; change .2500, -1.0000, .5000, ...'
    """
    parts = []
    for quantity, numbers in found.items():
        shown = numbers if counted(numbers) else numbers[:SHOWN]
        words = [str(x) if isinstance(x, int) else "NaN" if x is None else digits(x) for x in shown]
        more = ["..."] if len(numbers) > len(shown) else []
        parts.append(f"{quantity} {', '.join(words + more) or 'none'}")
    return "; ".join(parts)


def digits(number: float) -> str:
    """
    >>> digits(-0.25), digits(-0.00001)
    ('-.2500', '.0000')
    """
    return re.sub(r"^(-?)0\.", r"\1.", f"{round(number, 4) + 0.0:.4f}")


def row(case: Case, found: Found) -> dict[str, str]:
    code = f"{case['repository']} {case['file'].rpartition('/')[2]}, {case['commit']}{WHOSE[case['of']]}"
    bounds = {quantity: f"{most:.0e}".replace("e-0", "e-") for quantity in case["theirs"] if (most := bound(case, quantity))}
    below = ", ".join(f"{most} ({quantity})" if len(bounds) > 1 else most for quantity, most in bounds.items())
    difference = case["departs"] or (f"rounding, below {below}" if bounds else "0")
    cells = {"case": case["name"], "code": code, "input": case["input"], "theirs": told(case["theirs"]), "ours": told(found)}
    return {**cells, "difference": difference}


def table(found: dict[str, Found], departs: bool) -> str:
    rows = [row(case, found[case["name"]]) for case in cases() if bool(case["departs"]) == departs]
    return markdown(pd.DataFrame(rows))


def summary() -> str:
    same = [case for case in cases() if not case["departs"]]
    methods = {case["name"].partition(",")[0] for case in cases()}
    own = {case["name"].partition(",")[0] for case in cases() if case["of"] != "suite"}
    return (
        f"{len(methods)} rules and attacks, {len(own)} of them against code of their authors, {len(cases())} comparisons: "
        f"{len(same)} agree, {len(cases()) - len(same)} depart for a reason."
    )


BLOCKS: dict[str, Callable[[dict[str, Found]], str]] = {
    "summary": lambda _: summary(),
    "same": lambda found: table(found, departs=False),
    "departs": lambda found: table(found, departs=True),
}
BLOCK = re.compile(r"(<!-- from authors_code\.json: ([\w ]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def written(text: str, found: dict[str, Found]) -> str:
    """A page with its blocks as the file and our rules have them."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{BLOCKS[block[2]](found)}\n\n{block[4]}", text)


def main() -> None:
    page = HERE / "authors_code.md"
    page.write_text(written(page.read_text(), ours()))


if __name__ == "__main__":
    main()
