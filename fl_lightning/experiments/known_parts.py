"""What parts of settings were read as, so that cells that say the same of a part have it parsed once.

The parser of `fit` takes its settings one by one: what `model.aggregator` is read as follows from what the layers say of it, in
their order, and from nothing that they say of `model.attacks`; the seed alone is handed on to others. So a cell is put
together of parts, each from a cell that was parsed as a whole and of which the layers say the same of that part. A cell in
which anything is new, or said so that no part can be told from another, is parsed as a whole itself: what is wrong is found
there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.settings import Layer
from fl_lightning.files.yaml_files import load_yaml
from fl_lightning.options.class_settings import named_classes
from fl_lightning.options.command_checks import GROUPS

Part = tuple[str, ...]
"""Where a setting stands that is parsed by itself: `("data",)`, or within a group `("model", "aggregator")`."""

Said = dict[Part, tuple[str, ...]]
"""What layers say of the parts that they name, in their order."""

SEED: Part = ("seed_everything",)

FILES: Part = ("config",)
"""Which files the parser has read; no setting."""


@dataclass(frozen=True)
class Reading:
    """What layers were read as.

    Attributes:
        config: all settings, plain.
        unset: the same without what `--with` adds.
        parsed: those of `config` as the parser has them, from which classes are made; they stand under the command's name.
    """

    config: dict[str, Any]
    unset: dict[str, Any]
    parsed: Namespace

    @property
    def classes(self) -> list[str]:
        """The names of all classes in it, without what `--with` adds."""
        return sorted(set(named_classes(self.unset)))


@dataclass
class KnownParts:
    """The parts of all that one parser has read with the same further arguments.

    Nothing in them may be changed, as each stands in the settings of many cells.
    """

    _parts: list[Part] = field(default_factory=list)
    _frame: Namespace = field(default_factory=Namespace)
    _known: dict[Any, tuple[Any, Any, Any]] = field(default_factory=dict)
    _layers: dict[Any, tuple[Layer, Said | None]] = field(default_factory=dict)

    def add(self, layers: Sequence[Layer], reading: Reading) -> None:
        """Take what was parsed as a whole."""
        plain, unset, parsed = (parts_of(tree) for tree in (reading.config, reading.unset, vars(reading.parsed.fit)))
        parsed.pop(FILES, None)
        if not self._parts:
            self._parts, self._frame = list(plain), reading.parsed
        if not self._parts == list(plain) == list(unset) == list(parsed):
            return
        for part, key in (self.keys(layers) or {}).items():
            self._known[key] = plain[part], unset[part], parsed[part]

    def find(self, layers: Sequence[Layer]) -> Reading | None:
        """What these layers would be read as, if each of its parts is known."""
        keys = self.keys(layers)
        if not keys or not self._known.keys() >= set(keys.values()):
            return None
        config: dict[str, Any] = {}
        unset: dict[str, Any] = {}
        parsed = self._frame.clone()
        for part, key in keys.items():
            plain, before, parsed.fit[".".join(part)] = self._known[key]
            for tree, value in ((config, plain), (unset, before)):
                (tree.setdefault(part[0], {}) if len(part) > 1 else tree)[part[-1]] = value
        return Reading(config, unset, parsed)

    def keys(self, layers: Sequence[Layer]) -> dict[Part, Any] | None:
        """All that each part follows from; None if that cannot be told."""
        said: Said = {}
        for layer in layers:
            of_layer = self.said(layer)
            if of_layer is None:
                return None
            for part, text in of_layer.items():
                said[part] = (*said.get(part, ()), *text)
        if not said.keys() <= set(self._parts):
            return None
        return {part: (part, said.get(part, ()), said.get(SEED, ())) for part in self._parts}

    def said(self, layer: Layer) -> Said | None:
        """What a layer says of each part; None if it may mean several parts by one word."""
        known = layer if isinstance(layer, str) else id(layer)
        if known not in self._layers:
            self._layers[known] = layer, said(layer)  # with the layer, so that no other one gets its id
        return self._layers[known][1]


def said(layer: Layer) -> Said | None:
    """What a layer says of each part; None if it may mean several parts by one word.

    Example:
        >>> said({"model": {"attacks+": ["PGD"]}})
        {('model', 'attacks'): ("[None, ('model', 'attacks+', ['PGD'])]",)}
    """
    content: Any = layer
    if isinstance(layer, str):
        try:
            content = load_yaml(Path(layer), layer)
        except ConfigurationError:  # to be said by whoever parses it
            return None
    found: dict[Part, list[Any]] = {}
    for names, value in entries(content):
        if not all(isinstance(name, str) and name for name in names):
            return None
        path = ".".join(names).split(".")
        part = tuple(path[: 2 if path[0] in GROUPS else 1])
        found.setdefault((*part[:-1], part[-1].removesuffix("+")), []).append((*names, value))
    seed = found.get(SEED)  # a layer may give the same one to model and data
    return {part: (layer if isinstance(layer, str) else repr([seed, *what]),) for part, what in found.items()}


def entries(content: Any) -> Iterator[tuple[list[Any], Any]]:
    """The settings in a layer, those of a group one by one, each with the words that it is given by.

    A layer that is no mapping, and a group that is none, has an entry by which no part is named.
    """
    for name, value in content.items() if isinstance(content, Mapping) else [(None, content)]:
        if name in GROUPS and isinstance(value, Mapping):
            yield from (([name, inner], part) for inner, part in value.items())
        else:
            yield [name], value


def parts_of(config: Mapping[str, Any]) -> dict[Part, Any]:
    """The parts of all settings, in their order."""
    found: dict[Part, Any] = {}
    for name, value in config.items():
        group = vars(value) if isinstance(value, Namespace) else value
        if name in GROUPS and isinstance(group, Mapping):
            found |= {(name, inner): part for inner, part in group.items()}
        else:
            found[name,] = value
    return found
