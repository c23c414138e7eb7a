"""The reference pages of rules, attacks, tasks, partitions, networks and callbacks, written from their docstrings.

`pages()` gives them by their names, as Markdown; Sphinx's configuration writes them before a build. Arguments, papers and YAML
are those of `fl-lightning list`. When to use a class, which no docstring says, stands in `catalogue.yaml`.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from benchmarks.report import RESULTS, matching, read
from fl_lightning.catalogue.classes import entry
from fl_lightning.catalogue.entries import Entry, in_short
from fl_lightning.catalogue.kinds import KINDS, Kind

BY_HAND = Path(__file__).with_name("catalogue.yaml")
SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Example):$", flags=re.MULTILINE)
LABEL = re.compile(r"(Bounds|Cost|Differs from the (?:paper|papers|published code)[^:]*): ")
TITLES = {"pools": "Edge-case pools", "models": "Networks"}

RULES = """\
N clients report g_1 to g_N, with n_i samples each; f of them are malicious. A(G) is what the server steps by, A_k one of its d
coordinates. Rules of distances see all coordinates, the others each by itself."""


@dataclass(frozen=True)
class Shown:
    """A class and its entry in the catalogue."""

    kind: Kind
    cls: type
    entry: Entry

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def path(self) -> str:
        """By which users import it."""
        return f"{self.kind.package.__name__}.{self.name}"

    @property
    def file(self) -> str:
        """What the docstring of its file says."""
        return inspect.cleandoc(sys.modules[self.cls.__module__].__doc__ or "")

    @property
    def alone(self) -> bool:
        """Whether the class is the only one of its file, whose first line then speaks of it."""
        return Counter(shown.cls.__module__ for shown in classes())[self.cls.__module__] == 1

    @property
    def source(self) -> str:
        """The paper, as the file has it."""
        return "\n\n".join(self.file.split("\n\n")[1:])

    @property
    def paper(self) -> str:
        """A link to the paper, for a table."""
        title = re.search(r'"([^"]+)"', self.source)
        return f"[{' '.join(title[1].split())}]({self.entry.addresses[0]})" if title and self.entry.addresses else ""


@cache
def by_hand() -> dict[str, dict[str, str]]:
    """By page and class, when to use it."""
    return yaml.safe_load(BY_HAND.read_text())


@cache
def classes() -> tuple[Shown, ...]:
    """All classes, page by page, in alphabetical order."""
    found = []
    for kind in KINDS:
        of_kind = kind.classes()
        files = Counter(cls.__module__ for cls in of_kind)
        found += [Shown(kind, cls, entry(kind, cls, alone=files[cls.__module__] == 1)) for cls in of_kind]
    return tuple(found)


def text(docstring: str) -> str:
    """A docstring's prose as Markdown: names of classes are links, and signs of mathematics are no markup."""
    known = {shown.name: shown.path for shown in classes()}

    def inline(part: str) -> str:
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
        prose = "".join(inline(part) for part in re.split(r"(`[^`]+`)", rest))
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


def cost(name: str) -> str:
    """What benchmarks found for a rule, from the newest file that has it."""
    for file in sorted(RESULTS.glob("*.jsonl"), reverse=True):
        wanted = {"benchmark": "aggregators", "rule": name, "clients": 20, "coordinates": 1_000_000}
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


def section(shown: Shown) -> str:
    """One class: what it is, its formula, arguments, source, and how it stands in a configuration."""
    parts = sections(inspect.cleandoc(shown.cls.__doc__ or ""))
    signature = ", ".join(str(argument) for argument in shown.entry.arguments)
    arguments = [
        f"`{argument.name}` (`{argument.type}`, {'required' if argument.required else f'`{in_short(argument.default)}`'})\n"
        f": {text(argument.about)}"
        for argument in shown.entry.arguments
    ]
    body = [
        f"## {shown.name}",
        f"```{{py:class}} {shown.path}({signature})\n:no-contents-entry:\n```",
        *([text(" ".join(shown.file.split("\n\n")[0].split()))] if shown.alone else []),
        text(parts[""]),
        f"**When to use it.** {by_hand()[shown.kind.name][shown.name]}",
        cost(shown.name) if shown.kind.name == "rules" else "",
        *([f"**Raises.** {text(parts['Raises'])}"] if "Raises" in parts else []),
        *(["**Arguments**", *arguments] if arguments else []),
        *(["**In a configuration**", block("yaml", shown.entry.yaml)] if shown.entry.yaml else []),
        *(["**In Python**", block("pycon", parts["Example"])] if "Example" in parts else []),
        *([f"**Source.** {text(shown.source)}"] if shown.source else []),
    ]
    return "\n\n".join(part for part in body if part)


def title(kind: Kind) -> str:
    return TITLES.get(kind.name, kind.name.capitalize())


def table(kind: Kind) -> str:
    """All classes of a kind: name, one line, paper."""
    rows = ["| name | what it is | paper |", "| --- | --- | --- |"]
    for shown in classes():
        if shown.kind is kind:
            line = text(shown.entry.about).replace("|", "\\|")
            rows.append(f"| {{py:class}}`{shown.name} <{shown.path}>` | {line} | {shown.paper} |")
    return "\n".join(rows)


def differences() -> str:
    """What differs from papers and others' code, class by class, as their docstrings and files have it."""
    parts = ["# Differences, class by class", "As the docstrings have it."]
    for kind in KINDS:
        own = []
        for shown in classes():
            docstrings = f"{inspect.cleandoc(shown.cls.__doc__ or '')}\n\n{shown.file if shown.alone else ''}"
            said = [paragraph for paragraph in docstrings.split("\n\n") if paragraph.startswith("Differs from")]
            if shown.kind is kind and said:
                own += [f"### {{py:class}}`{shown.name} <{shown.path}>`", *map(text, said)]
        parts += [f"## {title(kind)}", *own] if own else []
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """Markdown by the page's place under `docs/`."""
    found = {}
    everything = [
        "# Everything in one table",
        "What a configuration can name. Each name leads to its formula, arguments, bounds and a snippet of YAML.",
    ]
    for kind in KINDS:
        about = RULES if kind.name == "rules" else f"{kind.about[0].upper()}{kind.about[1:]}."
        own = [section(shown) for shown in classes() if shown.kind is kind]
        found[f"reference/{kind.name}.md"] = "\n\n".join([f"# {title(kind)}", about, *own]) + "\n"
        everything += [f"## {title(kind)}", table(kind)]
    found["reference/everything.md"] = "\n\n".join(everything) + "\n"
    found["explanation/differences.md"] = differences()
    return found
