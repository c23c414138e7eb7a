"""Blocks of a page that a script writes from a table, between `<!-- from FILE: NAME -->` and `<!-- end -->`.

What stands outside of them is written by hand.
"""

import re
from collections.abc import Callable, Mapping


def pattern(file: str) -> re.Pattern[str]:
    """What finds the blocks of one table: beginning, name, content and end."""
    return re.compile(rf"(<!-- from {re.escape(file)}: ([\w ,.-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def names(text: str, file: str) -> list[str]:
    """The blocks of a page that one table fills, in order."""
    return [found[2] for found in pattern(file).finditer(text)]


def written(text: str, file: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """A page with one table's blocks as that has them.

    >>> written("<!-- from a.csv: n -->\\nold\\n<!-- end -->", "a.csv", {"n": lambda: "new"})
    '<!-- from a.csv: n -->\\n\\nnew\\n\\n<!-- end -->'
    """
    return pattern(file).sub(lambda found: f"{found[1]}\n{blocks[found[2]]()}\n\n{found[4]}", text)
