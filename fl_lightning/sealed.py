"""JSON and settings that tell whether they are what was written: the SHA-256 of what they say is in them.

A digit that flips on a disk makes another number, which nobody would notice. Files without a digest, of earlier versions, of
other programs or written by hand, are believed.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_lightning.errors import ConfigurationError
from fl_lightning.regular_files import check_regular

KEY = "sha256"
"""Of a JSON object: the digest of all its other entries."""

LINE = "# sha256 of the lines above: "
"""What the last line of a text begins with."""

PATTERN = re.compile(rf"^{LINE}([0-9a-f]{{64}})$", re.MULTILINE)


class DamagedError(ConfigurationError):
    """A file is not what was written, or is not of its kind."""


def sealed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An object as JSON gives it back, with the digest of what it says.

    Example:
        >>> sorted(sealed({"acc": 0.5}))
        ['acc', 'sha256']
    """
    content = json.loads(json.dumps(entry, default=str))
    return {**content, KEY: digest(content)}


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of an object, whatever the order of its keys and the white space in its file were, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def unsealed(path: Path) -> dict[str, Any]:
    """What a file of JSON says, without its digest; empty if there is no file.

    Raises:
        ConfigurationError: it is no regular file.
        DamagedError: it is not JSON, no object, or not what was written.
    """
    check_regular(path)
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(found, dict):
        raise DamagedError(f"{path} is damaged: it is no object of JSON")
    if KEY in found and found.pop(KEY) != digest(found):
        raise DamagedError(f"{path} is damaged: what it says has another SHA-256 than the one in it")
    return found


def with_digest(text: str) -> str:
    """A text of whole lines, in a language in which # begins a comment, with a last line that has its digest."""
    return f"{text}{LINE}{hashlib.sha256(text.encode()).hexdigest()}\n"


def without_digest(text: str) -> str:
    """What a text says, whether it has a digest or not."""
    return re.sub(f"{PATTERN.pattern}\n?", "", text, flags=re.MULTILINE)


def altered(path: Path) -> bool:
    """Whether a text has a digest and is not what was written: edited by hand, or damaged.

    Raises:
        OSError: it cannot be read.
    """
    text = path.read_bytes().decode(errors="replace")
    found = PATTERN.search(text)
    if found is None:
        return False
    return text[found.end() :] != "\n" or hashlib.sha256(text[: found.start()].encode()).hexdigest() != found[1]
