"""The script of `fl-lightning completion`, asked as a shell asks it."""

import subprocess
import sys

import pytest

from fl_lightning.catalogue.completion import completion
from fl_lightning.cli import main
from fl_lightning.configuration import FederatedCLI
from fl_lightning.options.commands import FURTHER


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    pytest.importorskip("shtab", reason="shtab is not installed")
    file = tmp_path_factory.mktemp("completion") / "script.sh"
    with file.open("w") as written, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", written)
        completion(["bash"])
    return file


def completed(script, *words: str) -> set[str]:
    """What bash offers for the last word."""
    typed = " ".join(f"'{word}'" for word in words)
    asked = f'source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _shtab_fl_lightning; echo "${{COMPREPLY[@]}}"'
    return set(subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True).stdout.split())


def test_all_commands_are_offered(script):
    assert {*FederatedCLI.subcommands(), *FURTHER} <= completed(script, "fl-lightning", "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fit", "--model.agg"], {"--model.aggregator", "--model.aggregator.tau"}),
        (["fit", "--model.aggregator", "Inv"], {"Invariant"}),
        (["fit", "--model.attacks+", "Edge"], {"EdgeCase"}),
        (["validate", "--ckpt"], {"--ckpt_path"}),
        (["list", "par"], {"partitions"}),
        (["analyse", "theorem"], {"theorem10", "theorem11"}),
    ],
)
def test_what_is_offered(script, words, expected):
    found = completed(script, "fl-lightning", *words)
    assert expected <= found
    assert all(word.startswith(words[-1]) for word in found)


def test_without_shtab_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as left:
        main(["completion", "bash"])
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: completion needs the package shtab: pip install shtab\n"
