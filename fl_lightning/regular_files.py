"""What a program of this package opens is a regular file: a pipe would be waited for without end, and a device never ends."""

import stat
from pathlib import Path

from fl_lightning.errors import ConfigurationError

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def irregular(path: Path) -> str | None:
    """What there is in place of a regular file, in words; None for a regular file, a link to one, and where nothing is.

    Example:
        >>> irregular(Path("/")), irregular(Path("/dev/null")), irregular(Path("/none"))
        ('a folder', 'a device', None)
    """
    try:
        mode = path.stat().st_mode
    except OSError:  # whoever opens it says what is wrong
        return None
    return None if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "something else")


def check_regular(path: Path) -> None:
    """Raise `ConfigurationError` where something else than a regular file has a file's name."""
    kind = irregular(path)
    if kind is not None:
        raise ConfigurationError(f"{path} is {kind} and no regular file; a file has that name: move away what is in its place")
