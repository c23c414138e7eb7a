import hashlib
import json
import os
import platform
from importlib.metadata import PackageNotFoundError

import pytest
import torch
import yaml
from tiny import tiny_data, tiny_federation, tiny_trainer
from torch import nn

from fl_lightning import BackdoorMetrics, ConfigurationError, LastCheckpoint, RunRecord
from fl_lightning.callbacks import run_record
from fl_lightning.callbacks.run_record import compare, experiment, last_mean, weights_sha256
from fl_lightning.files import locked, read_lines

CONFIG = {
    "seed_everything": 0,
    "model": {"aggregator": {"class_path": "Invariant", "init_args": {"tau": 0.2}}, "attacks": [{"path": "/a"}]},
    "data": {"path": "/here", "num": 1},
    "trainer": {"max_epochs": 4, "devices": 2},
}


def changed(**parts):
    return {**CONFIG, **parts}


def run(folder, config=CONFIG, rounds=4, ckpt_path=None, federation=None):
    trainer = tiny_trainer(
        rounds,
        callbacks=[BackdoorMetrics(), RunRecord(config), LastCheckpoint(every_n_rounds=3)],
        default_root_dir=str(folder),
        enable_checkpointing=True,
    )
    federation = federation or tiny_federation()
    trainer.fit(federation, tiny_data(), ckpt_path=ckpt_path)
    return json.loads((folder / "run.json").read_text()), federation


def test_a_package_that_is_imported_from_a_folder_has_no_version(monkeypatch, tmp_path):
    def version(name):
        if name == "fl_lightning":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(run_record, "version", version)
    record, _ = run(tmp_path, rounds=1)
    assert record["versions"] == {**dict.fromkeys(run_record.PACKAGES, "1.0"), "fl_lightning": None} | {
        "python": platform.python_version()
    }


def test_record_holds_what_it_promises(tmp_path):
    record, federation = run(tmp_path)
    assert {
        *("acc", "asr", "acc_last10", "asr_last10", "history", "rounds", "seed", "config", "config_hash", "world_size"),
        *("versions", "hardware", "seconds", "client_updates_per_second", "peak_memory_bytes", "excluded_updates"),
        *("refused_rounds", "weights_sha256", "finished"),
    } <= set(record)
    assert record["finished"] is True
    assert record["rounds"] == 4
    assert [entry["round"] for entry in record["history"]] == [1, 2, 3, 4]
    assert record["acc"] == record["history"][-1]["acc"]
    assert record["acc_last10"] == pytest.approx(sum(entry["acc"] for entry in record["history"]) / 4)
    assert record["weights_sha256"] == weights_sha256(federation.client)
    assert set(record["seconds"]) == {"local_training", "exchange", "attack", "aggregation", "evaluation"}
    assert all(seconds >= 0 for seconds in record["seconds"].values())
    assert record["client_updates_per_second"] > 0
    assert record["peak_memory_bytes"] > 10**7
    assert read_lines(tmp_path / "metrics.jsonl") == record["history"]
    assert record["config"] == CONFIG
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == CONFIG
    assert (tmp_path / "last.ckpt").exists()
    assert not list(tmp_path.glob(".*"))


def test_last_checkpoint_is_that_of_the_last_round(tmp_path):
    run(tmp_path)  # every third of four rounds, and the last
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 4
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["last.ckpt"]


def test_a_resumed_run_adds_to_its_metrics(tmp_path):
    run(tmp_path, rounds=2)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(before + b'{"round": 3, "ac')  # killed while it wrote
    record, _ = run(tmp_path, changed(trainer={"max_epochs": 4, "devices": 7}), ckpt_path="last")
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(before)
    assert read_lines(tmp_path / "metrics.jsonl") == record["history"]
    assert len(record["history"]) == 4


def test_no_two_runs_train_in_one_folder(tmp_path):
    with locked(tmp_path / "training.lock"), pytest.raises(ConfigurationError, match="another run is training in"):
        run(tmp_path, rounds=1)
    run(tmp_path, rounds=1)
    run(tmp_path, rounds=1)  # the lock was given back


def test_the_record_of_another_configuration_is_kept(tmp_path):
    first, _ = run(tmp_path, rounds=1)
    run(tmp_path, rounds=1)
    assert len(list(tmp_path.glob("run*.json"))) == 1  # the same again replaces it
    second, _ = run(tmp_path, changed(seed_everything=3), rounds=1)
    kept = tmp_path / f"run.{first['config_hash'][:10]}.json"
    assert json.loads(kept.read_text())["config_hash"] == first["config_hash"] != second["config_hash"]
    assert read_lines(tmp_path / f"metrics.{first['config_hash'][:10]}.jsonl") == first["history"]
    assert read_lines(tmp_path / "metrics.jsonl") == second["history"]


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    run(tmp_path, rounds=2)
    other = changed(model={"aggregator": {"class_path": "Invariant", "init_args": {"tau": 0.6}}, "attacks": [{}]})
    with pytest.raises(ConfigurationError, match=r"aggregator\.init_args\.tau is 0\.2 there and 0\.6 here"):
        run(tmp_path, other, ckpt_path="last")


def test_more_rounds_other_devices_and_other_paths_are_the_same_experiment(tmp_path):
    run(tmp_path, rounds=2)
    moved = changed(data={"path": "/there", "num": 1}, trainer={"max_epochs": 4, "devices": 7})
    record, _ = run(tmp_path, moved, ckpt_path="last")
    assert [entry["round"] for entry in record["history"]] == [1, 2, 3, 4]


def test_hash_depends_on_the_experiment_alone():
    def digest(config):
        return RunRecord(config).config_hash

    assert digest(CONFIG) == digest(changed(trainer={"max_epochs": 4, "logger": True}, ckpt_path="x"))
    assert digest(CONFIG) == digest(changed(data={"path": "/elsewhere", "num": 1}))
    assert digest(CONFIG) != digest(changed(data={"path": "/here", "num": 2}))
    assert digest(CONFIG) != digest(changed(seed_everything=1))
    assert digest(CONFIG) != digest(changed(trainer={"max_epochs": 5}))
    assert "trainer" not in experiment(CONFIG)


def test_hash_does_not_depend_on_what_changes_no_bit():
    def digest(**local):
        return RunRecord(changed(model={"local": {"batch_size": 64, **local}, "compile_rules": "auto"})).config_hash

    assert digest() == digest(executor="graph", branches=1) == digest(executor="auto", branches=8)
    assert digest() != digest(executor="stacked")
    assert digest(executor="stacked") == digest(executor="stacked", branches=1)
    assert digest() != digest(batch_size=32)


def test_compare_names_every_difference():
    assert list(compare({"a": 1, "b": [1, {"c": 2}]}, {"a": 1, "b": [1, {"c": 3}], "d": 4})) == [
        "b[1].c is 2 there and 3 here",
        "d is None there and 4 here",
    ]


def test_means_of_metrics_that_were_not_always_measured():
    history = [{"round": i, "acc": float(i)} for i in range(20)]
    assert last_mean(history, "acc", 10) == 14.5
    assert last_mean(history, "acc", 1) == 19.0
    assert last_mean(history, "asr", 10) is None
    assert last_mean(history[:3], "acc", 10) == 1.0


def test_digest_is_of_names_types_shapes_and_bytes():
    module = nn.Linear(2, 2)
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} torch.float32 {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    assert weights_sha256(module) == digest.hexdigest()
    with torch.no_grad():
        module.bias[0] = torch.nextafter(module.bias[0], torch.tensor(9.0))
    assert weights_sha256(module) != digest.hexdigest()


@pytest.mark.parametrize("limits", [{"max_epochs": -1, "max_steps": 4}, {"max_epochs": 4}])
def test_the_last_round_is_kept_whatever_ends_the_run(tmp_path, limits):
    trainer = tiny_trainer(
        **limits,
        callbacks=[BackdoorMetrics(), LastCheckpoint(every_n_rounds=3)],
        default_root_dir=str(tmp_path),
        enable_checkpointing=True,
    )
    trainer.fit(tiny_federation(), tiny_data())
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 4
    assert not list(tmp_path.glob("*.part"))


def test_the_checkpoint_is_replaced_in_one_step(tmp_path, monkeypatch):
    """The file under its own name is whole at all times, also where temporary files lie on another file system."""
    sizes = []
    replace = os.replace

    def watched(source, target):
        if str(target).endswith("last.ckpt"):
            torch.load(source, weights_only=False)  # complete before it takes the name
            sizes.append(os.path.getsize(source))
        replace(source, target)

    monkeypatch.setattr("fl_lightning.callbacks.last_checkpoint.os.replace", watched)
    run(tmp_path, rounds=4)
    assert len(sizes) == 2
    assert min(sizes) > 1000
