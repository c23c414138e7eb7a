"""Entries of the configurations and sweeps that the package ships; what they say of themselves is the comment at their top."""

from itertools import takewhile
from pathlib import Path

from fl_lightning.catalogue.entries import Entry, first_sentence
from fl_lightning.shipped import CONFIGS
from fl_lightning.yaml_files import load_yaml

SWEEPS = CONFIGS / "sweeps"


def configurations() -> list[Entry]:
    """Every file that `fit --config` takes, by itself or on top of another."""
    return [entry(file, "configuration") for file in sorted(CONFIGS.rglob("*.yaml")) if SWEEPS not in file.parents]


def sweeps() -> list[Entry]:
    """Every file that `sweep` takes."""
    return [entry(file, "sweep", load_yaml(file, file.name).get("title", "")) for file in sorted(SWEEPS.rglob("*.yaml"))]


def entry(file: Path, kind: str, about: str = "") -> Entry:
    """The entry of a file; its first comment says what it is about, unless that is given."""
    lines = file.read_text().splitlines()
    comments = list(takewhile(lambda line: line.startswith("#"), lines))
    text = "\n".join(line.removeprefix("#").removeprefix(" ") for line in comments)
    return Entry(
        kind=kind,
        name=f"{CONFIGS.name}/{file.relative_to(CONFIGS)}",
        about=about or first_sentence(text),
        place=str(file),
        text=text,
        yaml="\n".join(lines[len(comments) :]) + "\n",
    )
