"""`fl-lightning list`: what there is to choose from."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial

from rich.console import Console

from fl_lightning.callbacks.quiet import quietly
from fl_lightning.catalogue.entries import Argument, Entry
from fl_lightning.catalogue.files import configurations, sweeps
from fl_lightning.catalogue.kinds import KINDS, Kind
from fl_lightning.catalogue.screen import as_json, show_entries, show_page, show_table
from fl_lightning.errors import ConfigurationError, nearest
from fl_lightning.experiments.arguments import Parser
from fl_lightning.files.cache import keep, kept


def entries(kind: Kind) -> list[Entry]:
    """All entries of a kind, by name, as its classes say it, which are imported where that is not known yet."""
    known = kept("catalogue", kind.name)
    if known is not None:
        return [replace(Entry(**each), arguments=[Argument(**one) for one in each["arguments"]]) for each in known]
    # With torch.
    from fl_lightning.catalogue.classes import described

    with quietly():
        found = described(kind)
    keep("catalogue", kind.name, [asdict(each) for each in found])
    return found


SECTIONS: dict[str, tuple[str, Callable[[], list[Entry]]]] = {
    **{kind.name: (kind.about, partial(entries, kind)) for kind in KINDS},
    "configs": ("configurations that are shipped, for `fit --config`", configurations),
    "sweeps": ("files of many runs that are shipped, for `sweep`", sweeps),
}
"""By kind, what it is and what makes its entries."""


def show(args: Sequence[str]) -> None:
    """`fl-lightning list [KIND [NAME]]`: an overview, one kind as a table, or all of one entry.

    Args:
        args: the command's arguments.

    Raises:
        ConfigurationError: there is no such kind or name.

    Example: `fl-lightning list`, `fl-lightning list rules`, `fl-lightning list rules Krum`, `fl-lightning list attacks --json`.
    """
    parser = Parser(
        prog="fl-lightning list",
        description="List what there is to choose from, with arguments and papers; a line per entry where it goes into a pipe.",
    )
    parser.add_argument("kind", nargs="?", help=f"one of {', '.join(SECTIONS)}; an overview where left out")
    parser.add_argument("name", nargs="?", help="an entry of that kind: all that there is to say of it")
    parser.add_argument("--json", action="store_true", help="as JSON, for tools")
    options = parser.parse_args(args)
    try:
        show_chosen(Console(), options.kind, options.name, options.json)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough; Python would say so once more as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_chosen(console: Console, kind: str | None, name: str | None, json: bool) -> None:
    """Print the overview, a kind or an entry.

    Args:
        console: where to.
        kind: one of `SECTIONS`; None for the overview.
        name: an entry of it; None for all.
        json: whether as JSON.
    """
    if kind is None:
        counts = {section: (len(make()), about) for section, (about, make) in SECTIONS.items()}
        if json:
            print(as_json({section: {"count": n, "about": about} for section, (n, about) in counts.items()}), file=console.file)
            return
        show_table(console, ["kind", "number", "what"], [(section, str(n), about) for section, (n, about) in counts.items()])
        if console.is_terminal:
            console.print(
                "fl-lightning list KIND lists one kind, fl-lightning list KIND NAME shows one entry.", highlight=False
            )
        return
    if kind not in SECTIONS:
        raise ConfigurationError(f"there is no kind {kind} to list; {place_of(kind) or nearest(kind, SECTIONS)}")
    listed = SECTIONS[kind][1]()
    if name is not None:
        found = find(listed, kind, name)
        print(as_json(found), file=console.file) if json else show_page(console, found)
    elif json:
        print(as_json(listed), file=console.file)
    else:
        show_entries(console, listed)


def find(listed: Sequence[Entry], section: str, name: str) -> Entry:
    """The entry of a name; a file also goes by the end of its path, without `.yaml`, if no other ends so."""
    whole = [entry for entry in listed if entry.name == name]
    ending = f"/{name.removesuffix('.yaml')}.yaml"
    found = whole or [entry for entry in listed if f"/{entry.name}".endswith(ending)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigurationError(f"{name} may be {' or '.join(entry.name for entry in found)}")
    hint = nearest(name, [entry.name for entry in listed])
    if not hint.startswith("did"):
        hint = f"`fl-lightning list {section}` shows all {len(listed)}"
    raise ConfigurationError(f"there is no {listed[0].kind} {name}; {hint}")


def place_of(name: str) -> str | None:
    """Where a name stands that was given in place of a kind."""
    for section, (_, make) in SECTIONS.items():
        if any(entry.name == name for entry in make()):
            return f"did you mean `fl-lightning list {section} {name}`?"
    return None
