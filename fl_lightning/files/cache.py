"""What takes seconds to work out and stays the same as long as the package does, kept in the user's cache folder.

The folder is `$XDG_CACHE_HOME/fl_lightning`, or `~/.cache/fl_lightning`; it may be deleted at any time. In it there is a folder
for each fingerprint of the package and its libraries, so that nothing is found that another version has worked out; all else
that something depends on is its key. Where the folder cannot be written, or a file is damaged, it is as if nothing had been
kept.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from fl_lightning.errors import ConfigurationError
from fl_lightning.files.sealed import sealed, unsealed
from fl_lightning.shipped import CONFIGS

PACKAGE = Path(__file__).parents[1]

SOURCES = (".py", ".yaml", ".jinja")

LIBRARIES = ("torch", "lightning", "torchmetrics", "jsonargparse", "docstring-parser", "pyyaml", "shtab")
"""By which settings are read and classes described."""

MOST_VERSIONS = 4
"""Fingerprints that have folders, such as those of two checkouts; the ones used last."""

MOST_ENTRIES = 5000
"""In the folder of a fingerprint, of some 10 KB each; the newest."""


def root() -> Path:
    """The package's folder in the user's cache."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "fl_lightning"


def fingerprint(package: Path = PACKAGE, configs: Path = CONFIGS) -> str:
    """Digest of what the package and its libraries are: paths, sizes and times of its sources, and versions."""
    files = []
    for folder, _, names in [entry for top in (package, configs) for entry in os.walk(top)]:
        for name in names:
            if name.endswith(SOURCES):
                about = os.stat(os.path.join(folder, name))
                files.append((folder, name, about.st_size, about.st_mtime_ns))
    versions = [(name, version_of(name)) for name in LIBRARIES]
    return digest([sys.version, platform.machine(), sys.prefix, versions, sorted(files)])


def version_of(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def digest(thing: Any) -> str:
    """SHA-256 of plain data, in hexadecimal.

    Raises:
        TypeError: it is no plain data.
    """
    return hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()


def place(kind: str, key: Any) -> Path:
    """The file of what is kept under a key."""
    return root() / _fingerprint()[:32] / f"{kind}-{digest(key)}.json"


def kept(kind: str, key: Any) -> Any:
    """What was kept under a key; None if nothing was.

    Args:
        kind: what sort of thing it is, a word.
        key: plain data: whatever it depends on beside the package.
    """
    with suppress(OSError, RuntimeError, ConfigurationError, ValueError):  # no home, no permission, a damaged file
        return unsealed(place(kind, key)).get("value")
    return None


def keep(kind: str, key: Any, value: Any) -> None:
    """Keep plain data under a key, where they are such that JSON gives them back as they were."""
    with suppress(OSError, RuntimeError, TypeError, ValueError):
        if json.loads(json.dumps(value)) != value:
            return
        file = place(kind, key)
        file.parent.mkdir(parents=True, exist_ok=True)
        prune()
        with NamedTemporaryFile("w", dir=file.parent, prefix="new-", delete=False) as written:
            try:
                written.write(json.dumps(sealed({"value": value})))
                written.close()
                os.replace(written.name, file)
            except BaseException:
                Path(written.name).unlink(missing_ok=True)
                raise


@cache
def prune() -> None:
    """Remove what other versions have kept, but for the last ones, and the oldest of what is too much; once in a process."""
    own = root() / _fingerprint()[:32]
    os.utime(own)
    of_versions = (path for path in root().iterdir() if path.is_dir() and re.fullmatch("[0-9a-f]{32}", path.name))
    others = sorted(of_versions, key=changed, reverse=True)  # word vectors and tokens lie beside them
    for path in others[MOST_VERSIONS:]:
        shutil.rmtree(path, ignore_errors=True)
    for path in sorted(own.iterdir(), key=changed, reverse=True)[MOST_ENTRIES:]:
        path.unlink(missing_ok=True)


def changed(path: Path) -> float:
    """When it was written; 0 for what another process has removed."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


_fingerprint = cache(fingerprint)
