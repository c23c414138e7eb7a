"""What the catalogue reads out of classes, held against the classes; every snippet must parse."""

import inspect
from importlib.util import find_spec
from pathlib import Path

import pytest

from fl_lightning import aggregators
from fl_lightning.aggregators import Bulyan, FedAvg, Invariant
from fl_lightning.catalogue.classes import entry
from fl_lightning.catalogue.command import entries
from fl_lightning.catalogue.entries import Entry
from fl_lightning.catalogue.files import configurations, sweeps
from fl_lightning.catalogue.kinds import KINDS
from fl_lightning.configuration import resolve
from fl_lightning.experiments.sweep import read_sweep
from fl_lightning.shipped import CONFIGS

BY_KIND = {kind.name: entries(kind) for kind in KINDS}
EVERY = [(kind.name, each) for kind in KINDS for each in BY_KIND[kind.name]]
RULES, *_ = KINDS


def names(case: tuple[str, Entry]) -> str:
    return f"{case[0]}-{case[1].name}"


def test_a_class_is_listed_because_its_package_exports_it(monkeypatch):
    class Newest(FedAvg):
        """A rule of tomorrow."""

    assert "Newest" not in [cls.__name__ for cls in RULES.classes()]
    monkeypatch.setattr(aggregators, "Newest", Newest, raising=False)
    monkeypatch.setattr(aggregators, "__all__", [*aggregators.__all__, "Newest"])
    assert "Newest" in [cls.__name__ for cls in RULES.classes()]
    assert entry(RULES, Newest).about == "A rule of tomorrow."


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_all_that_is_exported_is_there_but_for_bases(kind):
    exported = {getattr(kind.package, name) for name in kind.package.__all__}
    expected = {each for each in exported if inspect.isclass(each) and issubclass(each, kind.base)} - {kind.base}
    assert len(BY_KIND[kind.name]) == len(expected) >= 3
    assert {each.name for each in BY_KIND[kind.name]} == {cls.__name__ for cls in expected}


@pytest.mark.parametrize("case", EVERY, ids=names)
def test_an_entry_says_what_its_class_says(case):
    kind = next(kind for kind in KINDS if kind.name == case[0])
    cls, found = getattr(kind.package, case[1].name), case[1]
    assert found.about.endswith((".", ":"))
    assert "\n" not in found.about
    assert "Args:" not in found.text
    parameters = inspect.signature(cls).parameters
    assert [each.name for each in found.arguments] == list(parameters)
    for each in found.arguments:
        default = parameters[each.name].default
        assert each.required == (default is inspect.Parameter.empty)
        assert each.about, f"{cls.__name__}.{each.name} has no line in the docstring"
        assert "fl_lightning." not in each.type
        if isinstance(default, (int, float, str, type(None))):
            assert each.default == default
    if kind.name in ("rules", "attacks"):
        assert found.addresses, f"the file of {cls.__name__} names no paper"


@pytest.mark.parametrize("case", [case for case in EVERY if case[1].yaml], ids=names)
def test_a_snippet_parses(case):
    kind, found = case
    if found.name == "FromFlower" and find_spec("flwr_datasets") is None:
        pytest.skip("flwr-datasets is not installed")
    Path("snippet.yaml").write_text(found.yaml)
    config = resolve(["fit", "--config", str(CONFIGS / "quickstart.yaml"), "--config", "snippet.yaml"])
    if found.name == "LastCheckpoint":
        assert config["checkpoint"] == {"every_n_rounds": 1}
        return
    where = {
        "rules": lambda: config["model"]["aggregator"],
        "attacks": lambda: config["model"]["attacks"][0],
        "pools": lambda: config["model"]["attacks"][0]["init_args"]["pool"],
        "tasks": lambda: config["data"],
        "partitions": lambda: config["data"]["init_args"]["partition"],
        "models": lambda: config["model"]["client"],
        "callbacks": lambda: config["trainer"]["callbacks"][0],
    }
    read = where[kind]()
    assert read["class_path"].rpartition(".")[2] == found.name
    for each in found.arguments:
        if not each.required and each.name != "seed" and isinstance(each.default, (int, float, str)):
            assert read["init_args"][each.name] == each.default


def test_only_what_every_command_has_by_itself_has_no_snippet():
    assert {each.name for _, each in EVERY if not each.yaml} == {"RunRecord", "RoundProgressBar"}


def test_one_entry_in_full():
    found = entry(RULES, Invariant, alone=True)
    assert found.about == "The invariant aggregator: an AND-mask of sign consistency times a trimmed mean."
    assert found.place == "fl_lightning.aggregators.invariant.Invariant"
    assert str(found.arguments[0]) == "tau=0.2"
    assert found.arguments[1].about == "share trimmed from each tail, in [0, .5); .25 in the paper."
    assert found.addresses == ["https://arxiv.org/abs/2210.01834"]
    assert "Differs from the paper:" in found.text  # which stands behind the arguments
    assert found.yaml.startswith("model:\n  aggregator:\n    class_path: Invariant\n    init_args:\n      tau: 0.2\n")
    assert entry(RULES, Bulyan).arguments[0].type == "int | None"


def test_every_shipped_file_is_listed_once():
    listed = [Path(each.place) for each in [*configurations(), *sweeps()]]
    assert sorted(listed) == sorted(path for path in CONFIGS.rglob("*") if path.is_file())
    for each in [*configurations(), *sweeps()]:
        assert each.about, each.name
        assert each.text.count("\n") + each.yaml.count("\n") + 1 == Path(each.place).read_text().count("\n")
    quickstart = next(each for each in sweeps() if each.name == "configs/sweeps/quickstart.yaml")
    assert quickstart.about == read_sweep(Path(quickstart.place)).title
