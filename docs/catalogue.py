"""The reference pages of rules, attacks, tasks, partitions, networks and callbacks, written from their docstrings.

`pages()` gives them by their names, as Markdown; Sphinx's configuration writes them before a build. What a docstring does not
say, when to use a class and what its required arguments may be, stands in `catalogue.yaml`.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import yaml

from benchmarks.report import RESULTS, matching, read
from fl_lightning import aggregators, attacks, callbacks, data, models

BY_HAND = Path(__file__).with_name("catalogue.yaml")
SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Example):$", flags=re.MULTILINE)
LABEL = re.compile(r"(Bounds|Cost|Differs from the (?:paper|papers|published code)[^:.]*): ")


@dataclass(frozen=True)
class Kind:
    """A page: classes of one base in one of the package's folders."""

    page: str
    title: str
    intro: str
    package: Any
    base: type
    placed: Callable[[dict[str, Any]], dict[str, Any]]
    """A class, given as a configuration has it, in its place of a configuration."""


KINDS = [
    Kind(
        "rules",
        "Rules",
        "N clients report g_1 to g_N, with n_i samples each; f of them are malicious. A(G) is what the server steps by, A_k "
        "one of its d coordinates. Rules of distances see all coordinates, the others each by itself.",
        aggregators,
        aggregators.Aggregator,
        lambda given: {"model": {"aggregator": given}},
    ),
    Kind(
        "attacks",
        "Attacks",
        "Attacks compose as a list, in this order: what poisons data, how attackers train, what rewrites their updates.",
        attacks,
        attacks.Attack,
        lambda given: {"model": {"attacks": [given]}},
    ),
    Kind(
        "tasks",
        "Tasks",
        "What clients learn, and what is measured.",
        data,
        data.FederatedDataModule,
        lambda given: {"data": given},
    ),
    Kind(
        "pools",
        "Edge-case pools",
        "Samples from the tail of the distribution, for the attack `EdgeCase`.",
        data,
        data.EdgePool,
        lambda given: {"model": {"attacks": [{"class_path": "EdgeCase", "init_args": {"pool": given}}]}},
    ),
    Kind(
        "partitions",
        "Partitions",
        "How n training samples are dealt out to N clients; [side by side in a table](dealing_out.md).",
        data,
        data.Partition,
        lambda given: {"data": {"class_path": "Digits", "init_args": {"partition": given}}},
    ),
    Kind(
        "models",
        "Networks",
        "Clients of the package's own; any LightningModule of yours is one too.",
        models,
        models.Classifier,
        lambda given: {"model": {"client": given}},
    ),
    Kind(
        "callbacks",
        "Callbacks",
        "What is measured, recorded and shown. All but `AggregationDiagnostics` and `FlipRates` are there without being asked.",
        callbacks,
        L.Callback,
        lambda given: {"trainer": {"callbacks": [given]}},
    ),
]


@dataclass(frozen=True)
class Entry:
    """One class."""

    kind: Kind
    name: str
    cls: type

    @property
    def by_hand(self) -> dict[str, Any]:
        return by_hand()[self.kind.page][self.name]

    @property
    def path(self) -> str:
        return f"{self.kind.package.__name__}.{self.name}"

    @property
    def module(self) -> str:
        return inspect.cleandoc(sys.modules[self.cls.__module__].__doc__ or "")

    @property
    def alone(self) -> bool:
        """Whether the class is the only one of its file, whose first line then speaks of it."""
        return sum(entry.cls.__module__ == self.cls.__module__ for entry in entries()) == 1

    @property
    def line(self) -> str:
        """What it is, in one line."""
        text = self.module.split("\n\n")[0] if self.alone else inspect.cleandoc(self.cls.__doc__ or "").split("\n\n")[0]
        return " ".join(text.split())

    @property
    def source(self) -> str:
        """The paper, as the file has it."""
        return "\n\n".join(self.module.split("\n\n")[1:])

    @property
    def paper(self) -> str:
        """A link to the paper, for a table."""
        title, address = re.search(r'"([^"]+)"', self.source), re.search(r"https?://[^\s,;)]+[^\s,;).]", self.source)
        return f"[{' '.join(title[1].split())}]({address[0]})" if title and address else ""

    def arguments(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self.cls).parameters)

    def configuration(self) -> dict[str, Any]:
        """The class with all its settings that YAML can hold, where such a class stands in a configuration."""
        given = {
            name: list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            for name, parameter in self.arguments().items()
            if isinstance(parameter.default, (bool, int, float, str, tuple))
        }
        given |= self.by_hand.get("arguments", {})
        return self.kind.placed({"class_path": self.name} | ({"init_args": given} if given else {}))


@cache
def by_hand() -> dict[str, Any]:
    return yaml.safe_load(BY_HAND.read_text())


@cache
def entries() -> tuple[Entry, ...]:
    """All classes, page by page, in alphabetical order."""
    found = []
    for kind in KINDS:
        for name in sorted(kind.package.__all__, key=str.lower):
            cls = getattr(kind.package, name)
            if isinstance(cls, type) and issubclass(cls, kind.base) and cls is not kind.base:
                found.append(Entry(kind, name, cls))
    return tuple(found)


def text(docstring: str) -> str:
    """A docstring's prose as Markdown: names of classes are links, and signs of mathematics are no markup."""
    known = {entry.name: entry.path for entry in entries()}

    def shown(part: str) -> str:
        if part.startswith("`"):
            name = part.strip("`")
            return f"{{py:class}}`{name} <{known[name]}>`" if name in known else part
        part = re.sub(r"([*$])", r"\\\1", part)
        part = re.sub(r"<(?=\S)", r"\<", part)
        return re.sub(r"(https?://[^\s,;)]+[^\s,;).])", r"<\1>", part)

    paragraphs = []
    for paragraph in docstring.split("\n\n"):
        if paragraph.startswith("    "):
            paragraphs.append(paragraph)  # a block of code
            continue
        label = LABEL.match(paragraph)
        rest = paragraph[label.end() :] if label else paragraph
        prose = "".join(shown(part) for part in re.split(r"(`[^`]+`)", rest))
        paragraphs.append(f"**{label[1]}:** {prose}" if label else prose)
    return "\n\n".join(paragraphs)


def sections(docstring: str) -> dict[str, str]:
    """The parts of a docstring by their headings; what has none is "". A heading's part is what is indented below it."""
    found: dict[str, list[str]] = {"": []}
    current = ""
    for line in docstring.splitlines():
        if heading := SECTION.match(line):
            current = heading[1]
            found[current] = []
        else:
            if current and line and not line.startswith(" "):
                current = ""
            found[current].append(line)
    return {name: inspect.cleandoc("\n" + "\n".join(lines)) for name, lines in found.items()}


def items(block: str) -> dict[str, str]:
    """`name: what it is`, with further lines indented."""
    found: dict[str, str] = {}
    name = ""
    for line in block.splitlines():
        if match := re.match(r"^([\w.]+): ?(.*)$", line):
            name = match[1]
            found[name] = match[2]
        elif name:
            found[name] += f"\n{line.strip()}"
    return found


def default(parameter: inspect.Parameter) -> str:
    value = parameter.default
    if value is parameter.empty:
        return "required"
    if callable(value) and not isinstance(value, type):
        return "of the class"
    return f"`{value!r}`" if len(repr(value)) < 60 else f"`{type(value).__name__}()`"


def documented(entry: Entry) -> dict[str, str]:
    """What docstrings say of its arguments, those of the classes that it derives from included."""
    found: dict[str, str] = {}
    for cls in reversed(entry.cls.__mro__):
        if cls.__module__.startswith("fl_lightning"):
            parts = sections(inspect.cleandoc(cls.__dict__.get("__doc__") or ""))
            found |= items(parts.get("Attributes", "")) | items(parts.get("Args", ""))
    return found


def cost(entry: Entry) -> str:
    """What benchmarks found for a rule, from the newest file that has it."""
    for file in sorted(RESULTS.glob("*.jsonl"), reverse=True):
        wanted = {"benchmark": "aggregators", "rule": entry.name, "clients": 20, "coordinates": 1_000_000}
        for row in matching(read([file]), wanted):
            if "of_one_read" in row:
                shape = f"{row['clients']} x {row['coordinates']:,}"
                return (
                    f"**Cost.** {1e3 * row['seconds']['median']:.3g} ms for {shape} updates on one core, "
                    f"{row['of_one_read']:.3g} times one read of them, and {row['peak_mb']:.3g} MB beside them "
                    f"({row['device']}, {row['date']})."
                )
    return ""


def block(language: str, content: str) -> str:
    return f"```{language}\n{content.strip()}\n```"


def section(entry: Entry) -> str:
    """One class: what it is, its formula, arguments, source, and how it stands in a configuration."""
    parts = sections(inspect.cleandoc(entry.cls.__doc__ or ""))
    said = documented(entry)
    signature = ", ".join(
        name
        if parameter.default is parameter.empty
        else f"{name}={default(parameter).strip('`').replace('of the class', '...')}"
        for name, parameter in entry.arguments().items()
    )
    arguments = [
        f"`{name}` ({default(parameter)})\n: {text(said.get(name, 'See above.'))}".replace("\n", "\n  ").replace("\n  :", "\n:")
        for name, parameter in entry.arguments().items()
    ]
    body = [
        f"## {entry.name}",
        f"```{{py:class}} {entry.path}({signature})\n:no-contents-entry:\n```",
        *([text(entry.line)] if entry.alone else []),
        text(parts[""]),
        f"**When to use it.** {entry.by_hand['when']}",
        cost(entry) if entry.kind.page == "rules" else "",
        *([f"**Raises.** {text(parts['Raises'])}"] if "Raises" in parts else []),
        *(["**Arguments**", *arguments] if arguments else []),
        "**In a configuration**",
        block("yaml", yaml.safe_dump(entry.configuration(), sort_keys=False, default_flow_style=None, width=100)),
        *(["**In Python**", block("pycon", parts["Example"])] if "Example" in parts else []),
        *([f"**Source.** {text(entry.source)}"] if entry.source else []),
    ]
    return "\n\n".join(part for part in body if part)


def table(kind: Kind) -> str:
    """All classes of a kind: name, one line, paper."""
    rows = ["| name | what it is | paper |", "| --- | --- | --- |"]
    for entry in entries():
        if entry.kind is kind:
            line = text(entry.line).replace("|", "\\|")
            rows.append(f"| {{py:class}}`{entry.name} <{entry.path}>` | {line} | {entry.paper} |")
    return "\n".join(rows)


def differences() -> str:
    """What differs from papers and others' code, class by class, as their docstrings and files have it."""
    parts = ["# Differences, class by class", "As the docstrings have it."]
    for kind in KINDS:
        own = []
        for entry in entries():
            docstrings = f"{inspect.cleandoc(entry.cls.__doc__ or '')}\n\n{entry.module if entry.alone else ''}"
            said = [paragraph for paragraph in docstrings.split("\n\n") if paragraph.startswith("Differs from")]
            if entry.kind is kind and said:
                own += [f"### {{py:class}}`{entry.name} <{entry.path}>`", *map(text, said)]
        parts += [f"## {kind.title}", *own] if own else []
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """Markdown by the page's place under `docs/`."""
    found = {}
    everything = [
        "# Everything in one table",
        "What a configuration can name. Each name leads to its formula, arguments, bounds and a snippet of YAML.",
    ]
    for kind in KINDS:
        own = [section(entry) for entry in entries() if entry.kind is kind]
        found[f"reference/{kind.page}.md"] = "\n\n".join([f"# {kind.title}", kind.intro, *own]) + "\n"
        everything += [f"## {kind.title}", table(kind)]
    found["reference/everything.md"] = "\n\n".join(everything) + "\n"
    found["explanation/differences.md"] = differences()
    return found
