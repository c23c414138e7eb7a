"""The house as a reader finds it: few rooms at the door, wings that say what they are, and no import upwards."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import fl_lightning

ROOT = Path(fl_lightning.__file__).parent
MOST_ROOMS = 12
MOST_LINES = 450
FACES = ("__init__", "__main__")
"""They hand names on, and stand above all."""

WINGS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))


def floors() -> dict[str, int]:
    """The floor of each room in view, from the ground, as the contract has them."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    return {
        name.strip().removeprefix("fl_lightning."): floor
        for floor, layer in enumerate(reversed(layers))
        for name in layer.split("|")
    }


def room(module: str) -> str:
    """The room in view that a dotted name leads into; the package itself is its face."""
    return [*module.split("."), "__init__"][1]


def imports(file: Path) -> Iterator[str]:
    """The package's modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "fl_lightning":
            yield from (f"fl_lightning.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module


def arrows() -> set[tuple[str, str]]:
    """Which room imports which."""
    found = set()
    for file in ROOT.rglob("*.py"):
        inside = file.relative_to(ROOT)
        of = inside.parts[0].removesuffix(".py")
        found |= {(of, room(name)) for name in imports(file) if name.partition(".")[0] == "fl_lightning"}
    return {(one, other) for one, other in found if one != other and one not in FACES}


def test_few_rooms_at_the_door() -> None:
    assert len(list(ROOT.glob("*.py"))) <= MOST_ROOMS


def test_every_room_has_its_floor() -> None:
    rooms = {file.stem for file in ROOT.glob("*.py")} | set(WINGS)
    assert rooms - set(FACES) == set(floors())


def test_no_arrow_runs_upwards() -> None:
    floor = floors()
    found = {(one, other) for one, other in arrows() if other in floor}  # a public name is nobody's room
    assert len(found) > len(floor), "the arrows were not found"
    assert [(one, other) for one, other in sorted(found) if floor[one] <= floor[other]] == []


@pytest.mark.parametrize("wing", [wing for wing in WINGS if len(list((ROOT / wing).glob("*.py"))) > 1])
def test_a_wing_says_what_it_is(wing: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / wing / "__init__.py").read_text())) or ""
    assert "import" in text
    named = re.findall(r"Read\s+`(\w+\.py)`\s+first", text)
    assert named, "which file to read first"
    assert (ROOT / wing / named[0]).is_file()


def test_no_file_is_long() -> None:
    long = {file.name: lines for file in ROOT.rglob("*.py") if (lines := len(file.read_text().splitlines())) > MOST_LINES}
    assert long == {}
