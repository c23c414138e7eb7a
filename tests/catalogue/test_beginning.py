"""`fl-lightning init`: a folder in which the commands of the README work."""

import os
from pathlib import Path

import pytest

from fl_lightning.cli import main
from fl_lightning.experiments.sweep import read_sweep
from fl_lightning.shipped import CONFIGS, LAUNCH

SMALL = ["--trainer.max_epochs", "1", "--data.init_args.num_train", "2000", "--trainer.logger", "false"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_is_copied_and_works_there(monkeypatch, capsys):
    main(["init", "a demo"])
    assert contents(Path("a demo/configs")) == contents(CONFIGS)
    assert contents(Path("a demo/launch")) == contents(LAUNCH)
    assert {path.name for path in Path("a demo").iterdir()} == {"configs", "launch"}
    assert all(os.access(script, os.X_OK) for script in Path("a demo/launch").iterdir())
    *_, to_folder, command = capsys.readouterr().out.splitlines()
    assert to_folder == "  cd 'a demo'"
    monkeypatch.chdir("a demo")
    name, *args = command.split()
    assert name == "fl-lightning"
    main([*args, *SMALL])
    assert Path("runs/quickstart/run.json").exists()
    for file in Path("configs/sweeps").rglob("*.yaml"):
        for cell in read_sweep(file).cells:
            assert all(layer.exists() for layer in cell.layers if isinstance(layer, Path))


def test_an_empty_folder_will_do(capsys):
    main(["init", "."])
    assert Path("configs/quickstart.yaml").exists()
    assert "cd " not in capsys.readouterr().out


@pytest.mark.parametrize("there", ["file", "full"])
def test_nothing_is_written_over(there, capsys):
    if there == "file":
        Path("demo").write_text("mine")
    else:
        Path("demo").mkdir()
        Path("demo/configs").write_text("mine")
    with pytest.raises(SystemExit) as left:
        main(["init", "demo"])
    assert left.value.code == 2
    reason = {"file": "is a file", "full": "is not empty"}[there]
    assert capsys.readouterr().err == f"error: demo {reason}; give a new folder, or an empty one\n"
    assert [path.read_text() for path in Path().rglob("*") if path.is_file()] == ["mine"]
