"""Texts of users - labels, titles, error messages - where a program would read more into them than the text.

A spreadsheet takes a cell that begins with `=` for a formula, Markdown lets HTML through and loads pictures from elsewhere, a
line break ends a row.
"""

import re
import unicodedata
from typing import Any

import pandas as pd

FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
"""What a formula begins with in Excel, LibreOffice and Google Sheets, also in full width."""

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\s]+")

LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}"} | {
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi omega"
LATEX |= {unicodedata.lookup(f"GREEK SMALL LETTER {name.replace('lambda', 'lamda')}"): rf"$\{name}$" for name in GREEK.split()}
LATEX |= {
    "\u00b1": r"$\pm$",
    "\u00d7": r"$\times$",
    "\u2264": r"$\leq$",
    "\u2265": r"$\geq$",
    "\u2212": "$-$",
    "\u2026": r"\dots{}",
}
"""Characters that TeX reads as commands, and those of mathematics, which pdflatex has no letters for."""


def one_line(text: str) -> str:
    """The text without line breaks and other control characters.

    >>> one_line("two\\r\\nlines")
    'two lines'
    """
    return CONTROL.sub(" ", text).strip()


def csv_cell(value: Any) -> Any:
    """A value for a CSV file: numbers as they are, text that would be a formula behind an apostrophe.

    >>> [csv_cell(value) for value in ("=1+1", "-0.5", -0.5, "-", "a=b")]
    ["'=1+1", '-0.5', -0.5, '-', 'a=b']
    """
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.startswith(FORMULA) and len(text) > 1 and not is_number(text) else text


def is_number(text: str) -> bool:
    """Whether a text is nothing but a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def as_csv(frame: pd.DataFrame) -> str:
    """A table as CSV."""
    return frame.rename(columns=csv_cell).map(csv_cell).to_csv(index=False, lineterminator="\n")


def markdown_cell(text: str) -> str:
    """A text on one line of Markdown, looking as it is.

    >>> markdown_cell("<b> & a|b_c, [5]")
    '&lt;b> & a\\\\|b_c, \\\\[5\\\\]'
    """
    text = re.sub(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", one_line(text))
    return re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;")


def latex_cell(text: str) -> str:
    """A text for LaTeX, with the characters that it reads as commands made plain.

    >>> latex_cell("50% of a_b")
    '50\\\\% of a\\\\_b'
    """
    return "".join(LATEX.get(character, character) for character in one_line(text)).replace("--", "-{}-")
