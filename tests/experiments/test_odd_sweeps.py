"""Sweeps and run folders that are not what they seem."""

import pytest

from fl_lightning.callbacks.standard import standard_loggers
from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.run_folder import MOST_LETTERS, RunFolder, State
from fl_lightning.experiments.sweep import read_sweep


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("base: own.yaml\naxes: {seed: [0]}", r"base: own\.yaml is this very sweep"),
        ("axes: {rule: {a: ./own.yaml}}", r"axes\.rule\.a: \./own\.yaml is this very sweep"),
        ("axes: {rule: {'': {}}}", r"axes\.rule has a label that is empty"),
        ("axes: {rule: {' ': {}}}", r"axes\.rule has a label that is empty"),
        ("axes: {path: {setting: data.path, values: ['']}}", r"axes\.path has a label that is empty"),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused(tmp_path, content, said):
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(ConfigurationError, match=said):
        read_sweep(tmp_path / "own.yaml")


@pytest.mark.parametrize("name", ["csv", "tensorboard"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_in_the_place_of_a_loggers_folder_is_named(tmp_path, name, kind):
    place = tmp_path / name
    place.write_text("") if kind == "file" else place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match=rf"{name} is no folder, and a run's logger has one of that name"):
        standard_loggers(tmp_path)


def test_a_message_of_pages_is_one_line_that_is_cut(tmp_path):
    run = RunFolder(tmp_path)
    run.write_status(State.FAILED, message="\n".join(["a line of it"] * 100))
    assert run.message.startswith("a line of it a line")
    assert len(run.message) == MOST_LETTERS + 3
    assert "\n" not in run.message
