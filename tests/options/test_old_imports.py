"""Programs of version 0.1, which import the package's files by the names of then."""

import importlib
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import fl_lightning
from fl_lightning.options.old_names import MOVED

PROGRAM = """
import json, sys
import fl_lightning
before = sorted(sys.modules)
from fl_lightning.local_training import LocalTraining
from fl_lightning import strategy
import fl_lightning.strategy, fl_lightning.machine.strategy
same = LocalTraining is fl_lightning.LocalTraining, strategy is fl_lightning.machine.strategy
print(json.dumps([before, same, [sys.meta_path.count(finder) for finder in sys.meta_path]]))
"""


@pytest.fixture(params=MOVED)
def old(request):
    """A name of version 0.1, as in a process that has not imported it."""
    name = f"fl_lightning.{request.param}"
    sys.modules.pop(name, None)
    yield name
    sys.modules.pop(name, None)
    vars(fl_lightning).pop(request.param, None)


def test_an_old_name_is_the_module_of_now(old: str) -> None:
    now = f"fl_lightning.{MOVED[old.partition('.')[2]]}"
    with pytest.warns(FutureWarning, match=rf"^{old} is {now} now; import from there") as said:
        module = importlib.import_module(old)
    assert module is importlib.import_module(now) is sys.modules[old]
    assert module.__name__ == now
    assert importlib.util.find_spec(old) is importlib.util.find_spec(now)  # so that it can be loaded again
    assert importlib.import_module(old) is module
    assert len(said) == 1


@pytest.mark.parametrize("old", ["local_training"], indirect=True)
def test_what_was_pickled_under_an_old_name_is_the_class_of_now(old: str) -> None:
    written = f"c{old}\nLocalTraining\n.".encode()
    with pytest.warns(FutureWarning, match=r"import from there, LocalTraining from fl_lightning") as said:
        assert pickle.loads(written) is fl_lightning.LocalTraining
    assert said[0].filename == __file__


@pytest.mark.parametrize("name", ["fl_lightning.strategist", "fl_lightning.models.strategy", "fl_lightning_strategy"])
def test_what_never_was_is_not_found(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=rf"^No module named '{name}'$"):
        importlib.import_module(name)
    assert importlib.util.find_spec(name) is None


def test_a_program_sees_the_new_name_once_and_pays_nothing_before() -> None:
    path = os.pathsep.join([str(Path(fl_lightning.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    before, same, counts = json.loads(done.stdout)
    assert same == [True, True]
    assert set(counts) == {1}
    assert [name for name in before if name.startswith("fl_lightning")] == ["fl_lightning"]
    assert "torch" not in before
    assert done.stderr.count("FutureWarning: fl_lightning.strategy is fl_lightning.machine.strategy now") == 1
    assert done.stderr.count("FutureWarning") == 2
