"""Finished runs as one file of data: what tables need of them, without weights and without what only one machine knows.

A pack is JSON lines, compressed. The first tells what it is and how many lines follow; each of these is a sweep's index
(`sweeps/NAME`), a run (`pool/ID`) or a prefix (`prefixes/ID`) and has the digest of what it says. The same runs give the same
bytes. Whoever reads a pack has it unpacked into a folder as `sweep --runs` fills it, which is gone when the process ends.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fl_lightning.callbacks.detections import DETECTION_FILE
from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.merging import merged
from fl_lightning.experiments.pack_records import wrong_in
from fl_lightning.experiments.planned import POOL, SWEEPS
from fl_lightning.experiments.prefix import FOLDER
from fl_lightning.experiments.results import INDEX, read_index
from fl_lightning.files.run_files import own_file, read_lines, write_whole
from fl_lightning.files.sealed import KEY, digest, sealed, with_digest
from fl_lightning.files.yaml_files import write_yaml

ENDING = ".jsonl.gz"

KIND = "finished runs of fl_lightning"

VERSION = 1

LINES = ("metrics.jsonl", DETECTION_FILE)
"""Files of a run with a line per evaluation or round that go with its record."""

PLACE = re.compile(rf"(?:{SWEEPS}/\w[\w.-]*|(?:{POOL}|{FOLDER})/[\w-]+)")
"""What an entry is called, and the folder that it is unpacked into."""

OF_A_MACHINE = re.compile(r"(?P<name>[^=/~\s]*=)?(?P<path>[/~].*)", re.DOTALL)
"""A path that means nothing elsewhere, or an option with one."""

MOST_BYTES = 4 * 2**30
"""Of a pack's content; a run has some 10 KB."""

MOST_OF_A_LINE = 256 * 2**20


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_pack(file: Path, roots: Sequence[Path], names: Sequence[str] = ()) -> tuple[int, int, list[str]]:
    """Write what is finished of runs as one file.

    Args:
        file: to be written, or written anew; ends in `ENDING`.
        roots: folders as `sweep --runs` fills them, or packs; of a run that lies in several, `merged` says which counts.
        names: of the sweeps whose runs are meant; all runs without any.

    Returns:
        The number of runs in it, prefixes not counted, and of those left out as they are not finished; and what is to be said
        of runs that lie in several places.

    Raises:
        ConfigurationError: a root is none, a sweep is not there, or runs contradict each other.
    """
    if not file.name.endswith(ENDING):
        raise ConfigurationError(f"{file}: a pack's name ends in {ENDING}; give another")
    folders = [root_of(root) for root in roots]
    for folder in folders:
        check_root(folder, "RUNS")
    try:
        indices, notes = sweeps_of(folders, names)
    except ConfigurationError as error:
        raise ConfigurationError(named(str(error), roots)) from error
    wanted = {
        **{f"{POOL}/{run}": None for index in indices.values() for run in runs_of(index)},
        **{f"{FOLDER}/{prefix['id']}": None for index in indices.values() for prefix in index.get("prefixes", [])},
    }
    if not names:
        kinds = (POOL, FOLDER)
        wanted |= {f"{kind}/{path.name}": None for kind in kinds for root in folders for path in (root / kind).glob("*/")}
    entries: list[dict[str, Any]] = [
        {"place": f"{SWEEPS}/{name}", "index": index_of(indices[name])} for name in sorted(indices)
    ]
    notes, runs, left_out = [named(note, roots) for note in notes], 0, 0
    for place in sorted(filter(PLACE.fullmatch, wanted)):
        try:
            run, note = merged([root / place for root in folders])
        except ConfigurationError as error:
            raise ConfigurationError(named(str(error), roots)) from error
        notes += [named(note, roots)] if note else []
        of_pool = place.startswith(f"{POOL}/")
        if not run.finished:
            left_out += of_pool
            continue
        runs += of_pool
        lines = {name: read_lines(own_file(run.path / name)) for name in LINES}
        lines = {name: found for name, found in lines.items() if found}
        entries.append({"place": place, "record": portable(run.record), "lines": lines})
    head = {"kind": KIND, "version": VERSION, "entries": len(entries)}
    text = "".join(f"{json.dumps(sealed(entry))}\n" for entry in (head, *entries))
    write_whole(file, gzip.compress(text.encode(), mtime=0))
    return runs, left_out, notes


def sweeps_of(roots: Sequence[Path], names: Sequence[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The indices of sweeps by name, and what is to be said of them.

    Of several places that have a sweep, the one counts that has most runs of it, as its file may have got more cells, and of
    equals the first.
    """
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    notes = []
    for root in roots:
        for folder in sorted((root / SWEEPS).glob("*/")):
            if (names and folder.name not in names) or not own_file(folder / INDEX).exists():
                continue
            larger, smaller = (root, read_index(folder)), found.get(folder.name)
            if smaller is not None:
                larger, smaller = sorted((smaller, larger), key=lambda each: -len(runs_of(each[1])))
                if lost := runs_of(smaller[1]) - runs_of(larger[1]):
                    places = f"in {smaller[0]} are in no cell of it in {larger[0]}"
                    notes.append(f"{folder.name}: {len(lost)} of its runs {places}, whose file was changed; that is shown")
            found[folder.name] = larger
    for name in names:
        if name not in found:
            listed = " and ".join(str(root / SWEEPS) for root in roots)
            raise ConfigurationError(f"--sweep {name}: there is no such sweep in {listed}; `sweep` writes one as it begins")
    return {name: index for name, (_, index) in found.items()}, notes


def runs_of(index: Mapping[str, Any]) -> set[str]:
    """The ids of a sweep's runs."""
    return {run for cell in index["cells"] for run in cell["runs"].values()}


def index_of(index: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep's index for another machine; labels are the sweep's own words, and stay."""
    return {key: portable(value) if key == "given" else value for key, value in index.items()}


def portable(node: Any) -> Any:
    """A record without the paths of the machine that wrote it: of each, its last part is left.

    >>> portable({"path": "/home/me/data/mnist", "given": ["--data.path=/home/me/x.npz"], "name": "a/b"})
    {'path': 'mnist', 'given': ['--data.path=x.npz'], 'name': 'a/b'}
    """
    if isinstance(node, Mapping):
        return {key: portable(value) for key, value in node.items()}
    if isinstance(node, list):
        return [portable(part) for part in node]
    found = OF_A_MACHINE.fullmatch(node) if isinstance(node, str) else None
    return node if found is None else f"{found['name'] or ''}{os.path.basename(os.path.normpath(found['path']))}"


# ---- reading ---------------------------------------------------------------------------------------------------------


def is_pack(place: Path) -> bool:
    """Whether a place is a file of `pack`, by its name."""
    return place.name.endswith(ENDING) and place.is_file()


def root_of(place: Path) -> Path:
    """What a pack is unpacked to, a folder as `sweep --runs` fills it; any other place is one itself.

    Raises:
        ConfigurationError: the pack is damaged.
    """
    if not is_pack(place):
        return place
    about = place.stat()
    return Path(unpacked(place, about.st_mtime_ns, about.st_size).name)


def check_root(root: Path, option: str) -> None:
    """Raise unless there are runs in a folder; `option` is by what it was given."""
    if not (root / POOL).is_dir():
        raise ConfigurationError(
            f"{option} {root}: it has no folder {POOL}; give a folder as `sweep --runs` fills it, or a file of `pack` "
            f"(*{ENDING})"
        )


@cache
def unpacked(file: Path, *_: int) -> TemporaryDirectory[str]:
    """A pack as a folder, until the process ends."""
    folder = TemporaryDirectory(prefix="fl-lightning-pack-")
    root = Path(folder.name)
    (root / POOL).mkdir()
    for entry in entries_of(file):
        place = root / entry["place"]
        place.mkdir(parents=True)
        if "index" in entry:
            (place / INDEX).write_text(json.dumps(sealed(entry["index"]), indent=1) + "\n")
            continue
        record = entry["record"]
        (place / "run.json").write_text(json.dumps(sealed(record), indent=1) + "\n")
        (place / "config.yaml").write_text(with_digest(write_yaml(record.get("config", {}))))
        for name, lines in entry["lines"].items():
            (place / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def entries_of(file: Path) -> Iterator[dict[str, Any]]:
    """The entries of a pack, each after seeing that it is what was written."""
    damaged = ConfigurationError(
        f"{file} is damaged, or no file of `fl-lightning pack`; put a copy of it back, or pack the runs again"
    )
    places: set[str] = set()
    number, size, count = None, 0, 0
    try:
        with gzip.open(file) as lines:
            while line := lines.readline(MOST_OF_A_LINE):
                size, count = size + len(line), count + 1
                entry = json.loads(line)
                if size > MOST_BYTES or not isinstance(entry, dict) or entry.pop(KEY, None) != digest(entry):
                    raise damaged
                if number is None:
                    if entry.get("kind") != KIND or type(number := entry.get("entries")) is not int:
                        raise damaged
                    if entry.get("version") != VERSION:
                        raise ConfigurationError(
                            f"{file} is a pack of version {entry.get('version')!r:.20}, and this package reads version "
                            f"{VERSION}; install the version of the package that wrote it"
                        )
                    continue
                if not is_entry(entry) or entry["place"] in places:
                    raise damaged
                if found := wrong_in(entry):
                    raise ConfigurationError(
                        f"{file}, line {count} ({entry['place']}): {found}; no run wrote this: pack the runs again, or mend "
                        "what made the file"
                    )
                places.add(entry["place"])
                yield entry
    except ConfigurationError:
        raise
    except (gzip.BadGzipFile, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise damaged from error
    if number != len(places):
        raise damaged


def is_entry(entry: Mapping[str, Any]) -> bool:
    """Whether it can be unpacked."""
    place, lines = entry.get("place"), entry.get("lines")
    if not isinstance(place, str) or PLACE.fullmatch(place) is None:
        return False
    if place.startswith(f"{SWEEPS}/"):
        return isinstance(entry.get("index"), dict) and "record" not in entry
    whole = isinstance(entry.get("record"), dict) and isinstance(lines, dict) and set(lines) <= set(LINES)
    return whole and "index" not in entry and all(isinstance(found, list) for found in lines.values())


def named(text: str, places: Sequence[Path]) -> str:
    """A message in which packs go by their own names and not by what they are unpacked to."""
    for place in places:
        if is_pack(place):
            text = text.replace(str(root_of(place)), str(place))
    return text
