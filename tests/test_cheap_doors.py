"""Commands that start without torch and Lightning, which take seconds to import."""

import pytest
from light_process import HEAVY, run

from fl_lightning.cli import main
from fl_lightning.configuration import FederatedCLI
from fl_lightning.options.commands import FURTHER, OF_LIGHTNING


@pytest.mark.parametrize(
    ("args", "status", "shown"),
    [
        (["--help"], 0, "show-attack  show what attacks do to data"),
        (["--version"], 0, "fl-lightning 0."),
        ([], 2, "error: a command is missing; known: fit, "),
        (["fitt"], 2, "error: there is no command fitt; did you mean fit?"),
        (["sweep", "--help"], 0, "usage: fl-lightning sweep"),
        (["sweep", "--template"], 0, "axes:"),
        (["sweep", "gone.yaml"], 2, "error: the sweep gone.yaml cannot be read"),
        (["report", "--help"], 0, "usage: fl-lightning report"),
        (["report", "gone"], 2, "error: "),
        (["init", "new"], 0, "fl-lightning fit --config configs/quickstart.yaml"),
        (["list", "configs"], 0, "configs/quickstart.yaml"),
    ],
)
def test_needs_no_torch(args, status, shown):
    left, text, modules = run(*args)
    assert left == status
    assert shown in text
    assert not modules & HEAVY


def test_help_names_every_command_and_what_it_does():
    _, text, _ = run("--help")
    text = " ".join(text.replace("-\n", "-").split())
    for name, does in {**OF_LIGHTNING, **FURTHER}.items():
        assert f"{name} {does}" in text
    assert "--traceback shows where" in text
    assert list(OF_LIGHTNING) == list(FederatedCLI.subcommands())


@pytest.mark.parametrize(
    ("args", "shown"), [(["list", "pools"], "DirectorTweets"), (["completion", "bash"], "_shtab_fl_lightning")]
)
def test_what_classes_say_is_read_once(args, shown, capsys):
    if args[0] == "completion":
        pytest.importorskip("shtab", reason="shtab is not installed")
    main(args)  # here, where torch is there
    left, text, modules = run(*args)
    assert (left, text) == (0, capsys.readouterr().out)
    assert shown in text
    assert not modules & HEAVY
