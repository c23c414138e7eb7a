"""What can be seen of a command before anything is made of it."""

import os

import pytest
import yaml

from fl_lightning.errors import ConfigurationError
from fl_lightning.files.sealed import with_digest
from fl_lightning.options.command_checks import check_checkpoint, check_devices, check_seeds
from fl_lightning.options.this_machine import check_folder


@pytest.fixture
def alone(monkeypatch):
    for name in ("NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("devices", "nodes"), [(1, 1), ("auto", 1), (64, 1), ("2", 1), (-1, 1), ([0, 1], 1)])
def test_processes_that_a_machine_may_have(alone, devices, nodes):
    check_devices(devices, nodes)


@pytest.mark.parametrize(
    ("devices", "nodes", "message"), [(10**5, 1, "devices = 100000"), ("99999", 1, "devices"), (1, 2, "num_nodes = 2")]
)
def test_processes_that_nobody_would_start_or_wait_for(alone, devices, nodes, message):
    with pytest.raises(ConfigurationError, match=message):
        check_devices(devices, nodes)


def test_nodes_that_were_told_who_they_are_may_be_several(monkeypatch):
    monkeypatch.setenv("NODE_RANK", "1")
    check_devices(1, 2)


@pytest.mark.parametrize("folder", [".", "new", "new/in/new", "with [x] and blanks", "é", "#h?", "a%20b", "", "..."])
def test_folders_that_can_be_made_are_not_made(tmp_path, folder):
    check_folder(tmp_path / folder, "the folder")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("a::b", "'::'"),
        ("s3://bucket", "'://'"),
        ("zero\0byte", "must be a folder"),
        ("n" * 300, "File name too long"),
        ("file", "is no folder"),
        ("file/below", "is no folder"),
    ],
)
def test_folders_that_cannot_be(tmp_path, folder, message):
    (tmp_path / "file").touch()
    os.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=f"the folder.*{message}"):
        check_folder(folder, "the folder")


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ConfigurationError, match="there is no permission to write into"):
        check_folder(tmp_path, "the folder")


@pytest.mark.parametrize(
    "path", ["best", "hpc", "registry", "registry:mine", "gone", ".", "", "n" * 300, "last.ckpt::x", "zero\0byte"]
)
def test_what_is_no_checkpoint(path):
    with pytest.raises(ConfigurationError, match=r"ckpt_path: .*`last`"):
        check_checkpoint(path)


def test_what_may_be_a_checkpoint(tmp_path):
    check_checkpoint("last")
    (tmp_path / "some.ckpt").touch()
    check_checkpoint("some.ckpt")


SEEDS = {"seed_everything": 5, "model": {"seed": 5}, "data": {"class_path": "Phishing", "init_args": {"seed": 5}}}


def test_a_file_that_a_run_has_written_holds_its_seed_three_times(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SEEDS))
    check_seeds(["fit", "--config", "config.yaml", "--seed_everything", "7"])
    check_seeds(["fit", "--config=config.yaml"])
    check_seeds(["fit", "-c", "seed_everything: 5", "--config", "model: {seed: 5}"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data.seed", "3"], "--data.seed 3"),
        (["--data.init_args.seed=3"], "--data.init_args.seed 3"),
        (["--config", "model: {seed: 3}"], "model.seed is 3, but .* seed_everything, which is 0"),
        (["--config=data: {init_args: {seed: 3}}"], "data.init_args.seed is 3"),
        (["-c", "{seed_everything: 4, model: {seed: 3}}"], "which is 4"),
        (["--config", "model: {seed: 1, seed: 2}"], "the key seed stands twice"),
        (["--config", "gone.yaml"], "gone.yaml is neither a file nor settings"),
        (["--config", "config: {}"], "has the key config"),
        (["--config"], "neither a file nor settings"),
    ],
)
def test_a_seed_that_would_be_replaced_without_a_word(args, message):
    with pytest.raises(ConfigurationError, match=message):
        check_seeds(["fit", *args])


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff\xfe", "not text in UTF-8"), (b"", "no settings"), (b"a: [", "not YAML")]
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"the file config.yaml.*{message}"):
        check_seeds(["fit", "--config", "config.yaml"])


def test_settings_that_were_edited_are_taken_and_said_to_be(tmp_path, caplog):
    file = tmp_path / "config.yaml"
    file.write_text(with_digest("seed_everything: 3\n"))
    check_seeds(["fit", "--config", str(file)])
    assert caplog.text == ""
    file.write_text(file.read_text().replace("3", "4", 1))
    check_seeds(["fit", "--config", str(file)])
    assert (
        caplog.text.count("is not as a run wrote it: edited, or damaged; it is taken as it stands. Delete its last line") == 1
    )
    assert str(file) in caplog.text
