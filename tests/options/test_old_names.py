"""Settings and checkpoints of version 0.1, and the names that its files had.

`version_0_1/` holds what that version wrote: two rounds of the phishing task with a perceptron of 194 parameters.
"""

import importlib
import json
import shutil
from pathlib import Path

import pytest

from fl_lightning.cli import main
from fl_lightning.errors import ConfigurationError
from fl_lightning.options.layers import check_layer
from fl_lightning.options.old_names import MOVED, new_name, without_every

BEFORE = Path(__file__).parent / "version_0_1"


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A copy of the run, as a run writes into its folder."""
    return Path(shutil.copytree(BEFORE, tmp_path / "before"))


@pytest.mark.parametrize("old", MOVED)
def test_new_names_are_there(old: str) -> None:
    name = new_name(f"fl_lightning.{old}")
    assert name is not None
    importlib.import_module(name)


def test_other_names_stay() -> None:
    assert new_name("fl_lightning.models.MLP") is None
    assert new_name("my_net.strategy.Net") is None
    assert new_name("fl_lightning.strategist") is None


@pytest.mark.parametrize("by", [lambda name: name, lambda name: {"class_path": name}], ids=["name", "class_path"])
def test_an_old_class_path_is_refused_with_the_new_one(by) -> None:
    with pytest.raises(ConfigurationError, match=r"trainer\.strategy.*is fl_lightning\.FederatedStrategy now"):
        check_layer({"trainer": {"strategy": by("fl_lightning.strategy.FederatedStrategy")}}, "")


def test_an_old_name_on_the_command_line_is_refused_with_the_new_one(before: Path, capsys) -> None:
    arguments = ["--config", f"{before}/config.yaml", "--trainer.default_root_dir", f"{before}/new"]
    with pytest.raises(SystemExit) as ended:
        main(["fit", *arguments, "--trainer.strategy", "fl_lightning.strategy.FederatedStrategy"])
    assert ended.value.code == 2
    assert "fl_lightning.FederatedStrategy" in capsys.readouterr().err


def every(**cohort) -> dict:
    return {"model": {"cohort": {"every": 10, "attackers": 1, **cohort}}, "trainer": {}}


def test_an_old_setting_that_said_nothing_is_dropped() -> None:
    kept = {"model": {"cohort": {"attackers": 1, "participation": "fixed_share"}}, "trainer": {}}
    assert without_every(every(participation="fixed_share")) == kept
    assert without_every(kept) == kept


@pytest.mark.parametrize(
    ("cohort", "written"),
    [({"participation": "fixed_frequency"}, 10), ({"participation": "fixed_share", "every": 3}, 3), ({}, 10)],
)
def test_an_old_setting_that_said_something_is_refused_with_the_new_one(cohort, written) -> None:
    with pytest.raises(ConfigurationError, match=rf"is model\.cohort\.interval now, .* write interval: {written} in its place"):
        without_every(every(**cohort))


def test_a_run_of_version_0_1_goes_on(before: Path) -> None:
    arguments = ["--config", f"{before}/config.yaml", "--trainer.default_root_dir", str(before), "--trainer.max_epochs", "3"]
    main(["fit", *arguments, "--ckpt_path", "last", "--trainer.logger", "false"])
    record = json.loads((before / "run.json").read_text())
    assert record["state"] == "finished"
    rounds = [json.loads(line)["round"] for line in (before / "metrics.jsonl").read_text().splitlines()]
    assert rounds == [1, 2, 3]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("fl_lightning.strategy.FederatedStrategie", r"has no FederatedStrategie: did you mean FederatedStrategy\?"),
        (
            "fl_lightning.executors.Foo",
            r"fl_lightning\.training\.executor now, and has no Foo: known: LocalExecutor",
        ),
    ],
)
def test_a_new_name_that_is_not_there_is_not_offered(path: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"there is no {path}; .*{said}"):
        check_layer({"trainer": {"strategy": path}}, "")
