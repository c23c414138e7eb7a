"""Cells that were read and checked before, so that a sweep that is looked at again needs neither parsers nor torch.

What a cell's settings are follows from its layers, from further files that these name, from what the command adds, and from the
folder in which all of it is read; all of that is the key. A user's own classes may change without any of it changing: a sweep
that names one is read anew each time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from fl_lightning.checkpoints.start_digest import file_sha256, start_sha256
from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.settings import Layer
from fl_lightning.files.cache import keep, kept
from fl_lightning.files.sealed import LINE
from fl_lightning.files.yaml_files import FAST

KIND = "cell"

LIBRARIES = ("fl_lightning", "torch", "lightning")
"""Packages that the cache's fingerprint knows."""

DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
"""What may be the import path of a class or a function."""

LAUNCHERS = ("SLURM_", "TORCHELASTIC_")
"""What names of variables begin with by which a launcher is known; their values do not matter to settings."""

SETTING_VARIABLES = ("PL_", "JSONARGPARSE_")

SETTINGS = (".yaml", ".yml", ".json")
"""Endings of files in which settings may name further files."""

LARGE = 64 * 2**20
"""Bytes from which on a file is known by its time and not by its content: such files are data, which are not read here."""

LONGEST_NAME = 1000
"""Letters of a text that may be the name of a file."""


@dataclass(frozen=True)
class Settled:
    """What came of a cell.

    Attributes:
        config: all of its settings, with the seed that its layers give.
        clean: those of the prefix that it begins with; None for a sweep without.
        classes: the names of the classes in both, without what `--with` adds.
    """

    config: dict[str, Any]
    clean: dict[str, Any] | None
    classes: list[str]


@dataclass
class KeptCells:
    """The cells of one command.

    Args:
        about: what all of them have in common, plain.
    """

    about: Any
    _new: list[tuple[Sequence[Layer], Settled]] = field(default_factory=list)
    _files: dict[Path, Any] = field(default_factory=dict)
    _parts: dict[int, tuple[Any, list[Any]]] = field(default_factory=dict)
    _sealed: bool = False

    def find(self, layers: Sequence[Layer]) -> Settled | None:
        """What came of a cell of these layers, if that is still known."""
        entry = kept(KIND, self.key(layers))
        if not isinstance(entry, dict):
            return None
        settled = Settled(**entry["cell"])
        try:
            return settled if starts(settled) == entry["starts"] else None
        except ConfigurationError:  # weights that are gone: to be said by whoever checks them
            return None

    def add(self, layers: Sequence[Layer], settled: Settled) -> None:
        """Take a cell that has been read now, to be kept in the end."""
        self._new.append((layers, settled))

    def keep(self) -> None:
        """Keep what was read, unless a class is somebody's own: it may change what the cells after it are read as.

        Nor where a file has a digest, as it is said each time whether that is right, or was changed while it was read.
        """
        if self._sealed or any(own_names([settled.config, settled.clean]) for _, settled in self._new):
            return
        by_now = KeptCells(self.about)
        for layers, settled in self._new:
            if (key := self.key(layers)) == by_now.key(layers):
                keep(KIND, key, {"cell": asdict(settled), "starts": starts(settled)})

    def key(self, layers: Sequence[Layer]) -> Any:
        """All that the settings of a cell follow from, beside the package."""
        return {
            "about": self.part(self.about),
            "layers": [self.part(layer) for layer in layers],
            "folder": str(Path.cwd()),
            "launchers": sorted(name for name in os.environ if name.startswith(LAUNCHERS)),
            "variables": {name: value for name, value in os.environ.items() if name.startswith(SETTING_VARIABLES)},
        }

    def part(self, node: Any) -> list[Any]:
        """Settings, and what is in the files that they name; found once for each object, as cells share their layers."""
        if id(node) not in self._parts:
            files = {str(path): about for path, about in self.files(node, Path.cwd())}
            self._parts[id(node)] = node, [plain(node), files]  # with the object, so that no other one gets its id
        return self._parts[id(node)][1]

    def files(self, node: Any, folder: Path) -> Iterator[tuple[Path, Any]]:
        """The files that a text in settings may name, those that settings in them name, and what is in each."""
        for text in texts(node):
            for path in {Path.cwd() / text, folder / text}:
                if path not in self._files:
                    self._files[path] = None  # a file may name itself
                    if (about := content(path)) is not None:
                        inside = text_of(path) if path.suffix in SETTINGS else ""
                        self._sealed |= LINE in inside
                        self._files[path] = about, dict(self.files(parsed(inside), path.parent))
                if self._files[path] is not None:
                    about, further = self._files[path]
                    yield path, about
                    yield from further.items()


def starts(settled: Settled) -> list[str]:
    """The digests of the weights that a cell, and its prefix, start from."""
    configs = [config for config in (settled.config, settled.clean) if config is not None]
    return [start_sha256(path) for config in configs if (path := config["model"].get("start_from")) is not None]


def texts(node: Any) -> Iterator[str]:
    """Every text in settings that may name a file, and of an option `--name=text` what stands behind the sign."""
    if isinstance(node, Mapping):
        for key, part in node.items():
            yield from texts(key)
            yield from () if key == "default_root_dir" else texts(part)  # each run has another one
    elif isinstance(node, (list, tuple)):
        for part in node:
            yield from texts(part)
    elif isinstance(node, str) and node and "\0" not in node:
        yield from (text for text in {node, node.partition("=")[2]} if 0 < len(text) <= LONGEST_NAME)
        if node.lstrip().startswith(("{", "[")):  # settings themselves, as an option has them
            yield from texts(parsed(node))


def content(path: Path) -> Any:
    """What there is at a path, as far as settings may depend on it; None for nothing."""
    try:
        if path.is_dir():
            return path.stat().st_mtime_ns  # data, and runs: what is in their files is not read here
        if not path.is_file():
            return None
        about = path.stat()
        return [about.st_mtime_ns, about.st_size, about.st_ino] if about.st_size > LARGE else file_sha256(str(path))
    except OSError:
        return None


def text_of(path: Path) -> str:
    """A file's text; empty where it has none."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def parsed(text: str) -> Any:
    """What a text in YAML says, None if it is none; whoever reads settings in earnest says what is wrong."""
    try:
        return yaml.load(text, Loader=FAST)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def own_names(node: Any) -> bool:
    """Whether settings name a class or a function of somebody's own."""
    if isinstance(node, Mapping):
        return any(map(own_names, node.values()))
    if isinstance(node, (list, tuple)):
        return any(map(own_names, node))
    return isinstance(node, str) and DOTTED.fullmatch(node) is not None and is_own(node.partition(".")[0])


def is_own(package: str) -> bool:
    """Whether there is a package of this name that is not one of `LIBRARIES`."""
    try:
        return package not in LIBRARIES and find_spec(package) is not None
    except (ImportError, ValueError):
        return True


def plain(node: Any) -> Any:
    """Settings as data of JSON in which different settings are different: keys keep their types, mappings their order."""
    if isinstance(node, Mapping):
        return {"mapping": [[plain(key), plain(part)] for key, part in node.items()]}
    if isinstance(node, (list, tuple)):
        return [plain(part) for part in node]
    return node if node is None or isinstance(node, (str, bool, int, float)) else repr(node)
