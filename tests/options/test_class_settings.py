"""Settings of a class wherever a configuration names it."""

import argparse

import pytest

from fl_lightning.cli import main
from fl_lightning.configuration import build, resolve
from fl_lightning.errors import ConfigurationError
from fl_lightning.options.class_settings import check_classes, class_setting, named_classes, taken_out, with_settings

CONFIG = {
    "model": {
        "attacks": [{"class_path": "x.EdgeCase", "init_args": {"pool": {"class_path": "x.Pool", "init_args": {"path": None}}}}],
        "aggregator": {"class_path": "Krum"},
    },
    "data": {"class_path": "Pool", "init_args": {"path": "old", "n": 3}},
}


def test_every_class_of_that_name_gets_them():
    changed = with_settings(CONFIG, {"Pool.path": "new", "Krum.a.b": 1})
    assert changed["model"]["attacks"][0]["init_args"]["pool"]["init_args"] == {"path": "new"}
    assert changed["data"]["init_args"] == {"path": "new", "n": 3}
    assert changed["model"]["aggregator"] == {"class_path": "Krum", "init_args": {"a": {"b": 1}}}
    assert set(named_classes(CONFIG)) == {"EdgeCase", "Pool", "Krum"}


@pytest.mark.parametrize("args", [["--with", "A.b=[1, 2]"], ["--with=A.b=[1, 2]"]])
def test_they_are_taken_out_of_a_commands_arguments(args):
    assert taken_out(["fit", *args, "--x", "1"]) == (["fit", "--x", "1"], {"A.b": [1, 2]})


@pytest.mark.parametrize("text", ["A", "A=1", ".=1", "A.b", ""])
def test_what_is_no_setting(text):
    with pytest.raises(ConfigurationError, match=r"--with: .* is not of the form CLASS\.SETTING=VALUE"):
        taken_out(["fit", "--with", text])
    with pytest.raises(argparse.ArgumentTypeError):
        class_setting(text)


def test_a_class_that_is_not_there():
    with pytest.raises(ConfigurationError, match="no Krun in the configuration; did you mean Krum"):
        check_classes({"Krun.f": 1}, {"Krum", "Median"})


BASE = """
model: {client: {class_path: MLP, init_args: {sizes: [45, 8, 2]}}, aggregator: {class_path: TrimmedMean}, attacks:
  [{class_path: ValueTrigger}, {class_path: ValueTrigger, init_args: {column: 3}}]}
data: {class_path: Phishing, init_args: {partition: {class_path: IID, init_args: {num_clients: 50}}}}
trainer: {logger: false, accelerator: cpu}
"""
GIVEN = [
    "--config",
    BASE,
    "--with",
    "ValueTrigger.poison_fraction=0.25",
    "--with",
    "Phishing.num_train=700",
    "--with=IID.num_clients=40",
]


def test_a_command_takes_them_for_all_attacks_at_once(capsys):
    config = resolve(["fit", *GIVEN])
    assert [attack["init_args"]["poison_fraction"] for attack in config["model"]["attacks"]] == [0.25, 0.25]
    assert [attack["init_args"]["column"] for attack in config["model"]["attacks"]][1] == 3
    federation, data = (made := build(["fit", *GIVEN])).model, made.datamodule
    assert [attack.poison_fraction for attack in federation.attacks] == [0.25, 0.25]
    assert (data.num_train, data.partition.num_clients) == (700, 40)
    main(["prepare", *GIVEN])
    shown = capsys.readouterr().out
    assert "700" in shown
    assert "40 with" in shown
