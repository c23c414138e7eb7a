"""The command line as a user meets it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from ranks import on_ranks

from fl_lightning.cli import main
from fl_lightning.files.run_files import read_lines
from fl_lightning.machine.launched import launched

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
SMALL = ["--data.init_args.num_train", "2000", "--data.init_args.num_test", "300", "--trainer.logger", "false"]


def command(name: str, folder: Path, *args: str) -> list[str]:
    return [name, "--config", QUICKSTART, "--trainer.default_root_dir", str(folder), *SMALL, *args]


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_fit_then_validate_and_test(tmp_path, capsys):
    main(command("fit", tmp_path, "--trainer.max_epochs", "2"))
    shown = capsys.readouterr()
    assert "round 2/2: acc" in shown.err
    assert "Acc" in shown.out
    assert str(tmp_path / "run.json") in shown.out
    written = record(tmp_path)
    assert written["rounds"] == 2
    assert written["finished"]
    assert written["config"]["model"]["aggregator"]["init_args"]["tau"] == 0.6
    assert written["config"]["model"]["seed"] == 0
    left = sorted(tmp_path.rglob("*"))
    for name, stage in (("validate", "val"), ("test", "test")):
        main([*command(name, tmp_path, "--ckpt_path", str(tmp_path / "last.ckpt")), "--trainer.logger", "null"])
        shown = capsys.readouterr().out
        assert f"{name}, after round 2" in shown
        for data_set, metric in (("clean", "acc"), ("stamped", "asr"), ("clean, of class 1", "acc_source")):
            (line,) = [line for line in shown.splitlines() if f" {stage}/{metric} " in line]
            assert f" {data_set} " in line
            if metric != "acc_source":
                assert f"{written[metric]:.4f}" in line
    assert record(tmp_path) == written  # evaluation leaves the record alone
    assert sorted(tmp_path.rglob("*")) == left  # and no loggers' files


def test_the_written_configuration_reproduces_the_run(tmp_path):
    main(command("fit", tmp_path / "a", "--trainer.max_epochs", "1", "--seed_everything", "5"))
    again = tmp_path / "b"
    main(["fit", "--config", str(tmp_path / "a" / "config.yaml"), "--trainer.default_root_dir", str(again)])
    assert record(again)["weights_sha256"] == record(tmp_path / "a")["weights_sha256"]
    assert record(again)["config_hash"] == record(tmp_path / "a")["config_hash"]
    assert record(again)["seed"] == 5


def test_prepare_shows_what_a_run_would_use(tmp_path, capsys):
    main(command("prepare", tmp_path))
    shown = capsys.readouterr().out
    for expected in ("2,000", "300", "100 with 20 to 20 samples", "39,426", "ASR samples (ValueTrigger)"):
        assert expected in shown
    assert not (tmp_path / "run.json").exists()


def test_show_attack_draws_pictures_and_prints_tables(tmp_path, capsys):
    digits = str(ROOT / "configs" / "digits" / "edge_case.yaml")
    main(["show-attack", "--config", digits, "--output", str(tmp_path / "sheets" / "digits.png")])
    assert "sheets/digits.png" in capsys.readouterr().out
    assert (tmp_path / "sheets" / "digits.png").read_bytes().startswith(b"\x89PNG")
    main(command("show-attack", tmp_path))
    shown = capsys.readouterr().out
    assert "37: 0 -> 0.2" in shown
    assert "client " in shown
    assert [path.name for path in tmp_path.iterdir()] == ["sheets"]


def test_print_config_is_a_configuration(capsys):
    with pytest.raises(SystemExit) as left:
        main(["fit", "--config", QUICKSTART, "--print_config"])
    assert left.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["cohort"]["clients_per_round"] == 20


@pytest.mark.parametrize(
    ("args", "messages"),
    [
        (["--model.aggregator", "Invarient"], ["did you mean Invariant"]),
        (["--model.agregator", "Median"], ["did you mean aggregator"]),
        (["--model.aggregator.init_args.tua", "0.3"], ["tua", "did you mean tau"]),
        (["--model.cohort.client_per_rounds", "3"], ["did you mean clients_per_round"]),
        (["--data", "Fishing"], ["did you mean Phishing"]),
        (["--model.aggregator.init_args.tau", "2"], ["tau must lie in [0, 1], got 2"]),
        (["--model.aggregator.init_args.tau", "1"], ["tau = 1.0 masks every coordinate"]),
        (["--model.aggregator.init_args.alpha", "0.49"], ["trims b = ceil(0.49 * 20) = 10", "leaves 0"]),
        (["--model.aggregator.init_args.alpha", "0.5"], ["alpha must lie in [0, .5), got 0.5"]),
        (["--model.cohort.clients_per_round", "200"], ["clients_per_round = 200", "100 clients"]),
        (["--model.cohort.clients_per_round", "many"], ["many"]),
        (["--seed_everything", "true"], ["seed_everything: must be a whole number, got True"]),
        (["--seed_everything", "-3"], ["seed_everything must lie in [0, 2**32), got -3"]),
        (["--data.init_args.partition.init_args.num_clients", "0"], ["num_clients must be at least 1, got 0"]),
        (["--data.init_args.separation", ".nan"], ["data.separation must be a finite number, got nan"]),
        (["--checkpoint.every_n_rounds", "0"], ["every_n_rounds must be at least 1, got 0"]),
        (["--trainer.max_epochs", "-5"], ["max_epochs"]),
        (["--trainer.devices", "0"], ["trainer: "]),
        (["--trainer.accelerator", "gppu"], ["trainer: ", "gppu"]),
        (["--trainer.strategy", "federatedd"], ["trainer: ", "federatedd"]),
        (["--trainer.gradient_clip_val", "1"], ["clip"]),
        (
            ["--model.server_optimizer", "torch.optim.SGD", "--model.server_optimizer.init_args.lr", "-1"],
            ["server_optimizer", "-1"],
        ),
        (["--trainer.default_root_dir", "/dev/null/run"], ["trainer.default_root_dir cannot be made"]),
        (["--ckpt_path", "nothing.ckpt"], ["there is no file nothing.ckpt"]),
        (["--data", "CIFAR10", "--data.init_args.partition", "IID", "--data.init_args.path", "gone"], ["gone", "Parquet"]),
        (["--config", "gone.yaml"], ["gone.yaml"]),
        (["--model.client.init_args.sizes", "[44,2]"], ["44"]),
        (["--trainer.precision", "bf16-mixed"], ["model.local.precision"]),
    ],
)
def test_a_mistake_ends_in_one_readable_line(tmp_path, capsys, args, messages):
    with pytest.raises(SystemExit) as left:
        main(command("fit", tmp_path, *args))
    assert left.value.code == 2
    shown = capsys.readouterr().err
    (line,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert all(message in line for message in messages), line
    assert "Traceback" not in shown
    assert not (tmp_path / "run.json").exists()


def test_a_misspelt_key_in_a_file(tmp_path, capsys):
    text = Path(QUICKSTART).read_text().replace("clients_per_round", "clients_pr_round")
    (tmp_path / "typo.yaml").write_text(text)
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(tmp_path / "typo.yaml")])
    assert "did you mean clients_per_round" in capsys.readouterr().err


def test_a_checkpoint_of_another_configuration(tmp_path, capsys):
    main(command("fit", tmp_path, "--trainer.max_epochs", "1"))
    with pytest.raises(SystemExit) as left:
        main(command("fit", tmp_path, "--ckpt_path", "last", "--model.aggregator.init_args.alpha", "0.1"))
    assert left.value.code == 2
    assert "model.aggregator.init_args.alpha is 0.25 there and 0.1 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {}),
        (
            {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "RANK": "0", "LOCAL_RANK": "0"},
            {"devices": 4, "num_nodes": 2},
        ),
        (
            {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "3", "SLURM_PROCID": "0"},
            {"devices": 2, "num_nodes": 3},
        ),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "6", "SLURM_PROCID": "0"}, {}),  # a batch script
    ],
)
def test_devices_and_nodes_follow_the_launcher(monkeypatch, environment, expected):
    for name in list(os.environ):
        if name.startswith(("SLURM", "TORCHELASTIC", "GROUP_RANK")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected


def torchrun(world: int, folder: Path, *args: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    return [*launcher, "-m", "fl_lightning", *command("fit", folder, "--trainer.max_epochs", "8", *args)]


def kill_all(word: str) -> None:
    """SIGKILL to every process with a word in its command line: torchrun's workers have sessions of their own."""
    while True:
        found = [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if word in readable(path) and int(path.parent.name) != os.getpid()
        ]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def readable(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # the process has ended
        return ""


def resumes(folder: str, said: str) -> None:
    with open(said, "a") as file, contextlib.redirect_stderr(file):
        main(command("fit", Path(folder), "--trainer.max_epochs", "8", "--ckpt_path", "last"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes through /proc")
def test_killed_and_resumed_on_another_number_of_ranks(tmp_path):
    """SIGKILL half-way, then the same command with another W: the same bits as a run that nobody disturbed."""
    main(command("fit", tmp_path / "whole", "--trainer.max_epochs", "8"))
    folder = tmp_path / "parts"
    with (tmp_path / "log").open("w+") as log:
        run = subprocess.Popen(torchrun(2, folder), stderr=log, stdout=log, start_new_session=True, cwd=tmp_path)
        deadline = time.monotonic() + 120
        while "round 4/8" not in (tmp_path / "log").read_text():
            assert run.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        kill_all(str(folder))
        run.wait()
    assert record(folder)["state"] == "running"
    assert not record(folder)["finished"]
    reached = read_lines(folder / "metrics.jsonl")[-1]["round"]
    on_ranks(3, resumes, str(folder), str(tmp_path / "said"))
    said = (tmp_path / "said").read_text()
    assert 4 <= reached < 8
    assert f"round {reached - 1}/8" not in said  # it went on, it did not start again
    assert "round 8/8" in said
    whole, resumed = record(tmp_path / "whole"), record(folder)
    assert resumed["world_size"] == 3
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_the_module_runs_as_a_program(tmp_path):
    shown = subprocess.run([sys.executable, "-m", "fl_lightning", "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert shown.returncode == 0
    for name in ("fit", "validate", "test", "prepare", "show-attack"):
        assert name in shown.stdout


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint(tmp_path, capsys, content):
    if content is None:
        torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0"}, tmp_path / "last.ckpt")
    else:
        (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(SystemExit) as left:
        main(command("fit", tmp_path, "--ckpt_path", str(tmp_path / "last.ckpt")))
    assert left.value.code == 2
    shown = capsys.readouterr().err
    assert "cannot be read" in shown or "not one of a federation" in shown
    assert "Traceback" not in shown


def test_a_damaged_record_is_put_aside(tmp_path):
    (tmp_path / "run.json").write_text("[1]")
    main(command("fit", tmp_path, "--trainer.max_epochs", "1"))
    assert record(tmp_path)["rounds"] == 1
    assert (tmp_path / "earlier" / "1" / "run.json").read_text() == "[1]"


def test_a_trial_makes_not_even_the_folder(tmp_path, capsys):
    main(command("fit", tmp_path / "run", "--trainer.fast_dev_run", "1"))
    assert "A trial: nothing was written." in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["validate", "test"])
def test_evaluation_needs_a_checkpoint_of_this_configuration(tmp_path, capsys, name):
    with pytest.raises(SystemExit):
        main(command(name, tmp_path))
    assert f"{name} needs --ckpt_path" in capsys.readouterr().err
    main(command("fit", tmp_path, "--trainer.max_epochs", "1"))
    with pytest.raises(SystemExit):
        main(command(name, tmp_path, "--ckpt_path", str(tmp_path / "last.ckpt"), "--data.init_args.separation", "3"))
    assert "separation is 6.5 there and 3.0 here" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["validate", "test"])
def test_nothing_is_evaluated_without_a_checkpoint(command, capsys):
    args = [
        command,
        "--config",
        QUICKSTART,
        "--ckpt_path",
        "last",
        "--trainer.default_root_dir",
        "nowhere",
    ]
    with pytest.raises(SystemExit) as exited:
        main(args)
    assert exited.value.code == 2
    assert "there is no last.ckpt in nowhere" in capsys.readouterr().err
