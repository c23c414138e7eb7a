"""Values that YAML 1.1 and YAML 1.2 read differently, which nobody can have meant both ways.

Our reader is one of YAML 1.1, with numbers such as `1e-3` added to it; people, editors and other tools go by YAML 1.2. `0100`
is 64 to the one and 100 to the other, `1:40` is 100 or a text, `no` is false or a text. To choose would change what somebody's
file means without a word, so such a value is refused.
"""

import math
import re
from typing import Any

import yaml
from jsonargparse import get_loader

WORDS = ("yes", "no", "on", "off")
"""Words that are true or false to YAML 1.1 alone, in lower case."""

MAY_DIFFER = r"[-+]?[.0-9]([-+.:\w]*[.\w])?"
"""What begins like a number and is one word."""

NUMBER = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
"""A decimal number of YAML 1.2, whole or not."""

BASED = {"0o": 8, "0x": 16}
"""How numbers of YAML 1.2 begin that are not decimal, and their base."""


def check_versions(node: yaml.ScalarNode) -> str | None:
    """What is wrong with a value that is not in quotes, None if both versions of YAML read it alike.

    >>> check_versions(yaml.compose("0100"))
    "0100 is 64 to YAML 1.1 and 100 to YAML 1.2; write the one that is meant, a text in quotes: '0100'"
    """
    return None if node.style else check_text(node.value)


def check_text(text: str) -> str | None:
    """The same for a text out of which YAML would make a value."""
    if not re.fullmatch(MAY_DIFFER, text) and text.lower() not in WORDS:
        return None
    old, new = get_loader("yaml")(text), as_version_1_2(text)
    if type(old) is type(new) and (old == new or (isinstance(old, float) and math.isnan(old) and math.isnan(new))):
        return None
    readings = f"{text} is {named(old)} to YAML 1.1 and {named(new)} to YAML 1.2"
    return f"{readings}; write the one that is meant, a text in quotes: '{text}'"


def as_version_1_2(text: str) -> Any:
    """A value that begins like a number, or is one of `WORDS`, as YAML 1.2 reads it.

    >>> [as_version_1_2(text) for text in ("0100", "0o17", "1:40", "-.5", "no")]
    [100, 15, '1:40', -0.5, 'no']
    """
    if re.fullmatch(r"[-+]?[0-9]+", text):
        return int(text)
    if re.fullmatch("0o[0-7]+|0x[0-9a-fA-F]+", text):
        return int(text[2:], BASED[text[:2]])
    if re.fullmatch(NUMBER, text):
        return float(text)
    if re.fullmatch(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", text):
        return float(text.replace(".", ""))
    return text


def named(value: Any) -> str:
    """
    >>> named(True), named(100), named("1:40")
    ('true', '100', 'a text')
    """
    return "a text" if isinstance(value, str) else str(value).lower()
