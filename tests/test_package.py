"""What is said of the package as a whole, in one place or alike in all."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import fl_lightning
from fl_lightning.callbacks.machine import versions
from fl_lightning.cli import main
from fl_lightning.shipped import CONFIGS, LAUNCH

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_there_is_one_version(capsys):
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "fl_lightning.__version__"}
    assert versions()["fl_lightning"] == fl_lightning.__version__
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"fl-lightning {fl_lightning.__version__}\n"


def test_citation_and_changelog_are_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version, date = re.findall(r"^## \[([\d.]+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert str(citation["version"]) == version == fl_lightning.__version__
    assert str(citation["date-released"]) == date
    assert citation["license"] == PROJECT["project"]["license"]


def test_all_that_is_shipped_is_package_data():
    data = PROJECT["tool"]["setuptools"]["package-data"]["fl_lightning.shipped"]
    package = Path(fl_lightning.__file__).parent / "shipped"
    matched = {path.resolve() for pattern in data for path in package.glob(pattern)}
    assert matched == {path for folder in (CONFIGS, LAUNCH) for path in folder.rglob("*") if path.is_file()}
    assert (CONFIGS, LAUNCH) == (ROOT / "configs", ROOT / "launch")  # the folders that the README names
    assert (package.parent / "py.typed").exists()
