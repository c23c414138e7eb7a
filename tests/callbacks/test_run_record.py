import json
import platform
from datetime import timedelta
from importlib.metadata import PackageNotFoundError

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from small_config import CONFIG, changed
from tiny import fit, tiny_data, tiny_federation, tiny_trainer

from fl_lightning import BackdoorMetrics, ConfigurationError, FlipRates, LastCheckpoint, RunRecord, __version__
from fl_lightning.callbacks import machine
from fl_lightning.callbacks.digests import weights_sha256
from fl_lightning.files.run_files import locked, read_lines
from fl_lightning.training.peak_memory import PeakMemory


def run(folder, config=CONFIG, rounds=4, ckpt_path=None, federation=None, callbacks=(), **kwargs):
    trainer = tiny_trainer(
        rounds,
        callbacks=[*callbacks, BackdoorMetrics(), RunRecord(config), LastCheckpoint(every_n_rounds=3)],
        default_root_dir=str(folder),
        enable_checkpointing=True,
        **kwargs,
    )
    federation = federation or tiny_federation()
    trainer.fit(federation, tiny_data(), ckpt_path=ckpt_path)
    return read(folder), federation


def read(folder):
    return json.loads((folder / "run.json").read_text())


def evaluations(folder):
    return read_lines(folder / "metrics.jsonl")


def test_a_package_that_is_imported_from_a_folder_has_no_version_but_for_this_one(monkeypatch, tmp_path):
    def version(name):
        if name == "numpy":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(machine, "version", version)
    record, _ = run(tmp_path, rounds=1)
    assert record["versions"] == {
        **dict.fromkeys(machine.PACKAGES, "1.0"),
        "numpy": None,
        "fl_lightning": __version__,
        "python": platform.python_version(),
    }


def test_record_holds_what_it_promises(tmp_path):
    start = weights_sha256(tiny_federation().client)
    record, federation = run(tmp_path)
    entries = evaluations(tmp_path)
    assert record["finished"] is True
    assert (record["state"], record["reason"]) == ("finished", "all 4 rounds are done")
    assert record["rounds"] == record["evaluated_round"] == 4
    assert [entry["round"] for entry in entries] == [1, 2, 3, 4]
    assert record["acc"] == entries[-1]["acc"]
    assert record["acc_last10"] == pytest.approx(sum(entry["acc"] for entry in entries) / 4)
    assert record["acc_last10_rounds"] == record["asr_last10_rounds"] == [1, 2, 3, 4]
    assert record["weights_sha256"] == weights_sha256(federation.client)
    assert record["refused_rounds"] == 0
    assert record["initial_weights_sha256"] == start != record["weights_sha256"]
    assert set(record["seconds"]) == {
        *("local_training", "attackers_training", "exchange", "attack", "aggregation", "evaluation")
    }
    assert record["seconds"]["attackers_training"] < record["seconds"]["local_training"]
    assert all(seconds >= 0 for seconds in record["seconds"].values())
    assert record["client_updates_per_second"] > 0
    assert record["peak_memory_bytes"] > 10**7
    can_look = PeakMemory(torch.device("cpu")).can_look
    assert set(record["extra_memory_bytes"]) == ({"attackers_training", "attack", "aggregation"} if can_look else set())
    assert all(0 <= taken < record["peak_memory_bytes"] for taken in record["extra_memory_bytes"].values())
    assert {"seed", "config_hash", "world_size", "versions", "hardware", "executor", "excluded_updates"} <= set(record)
    assert record["config"] == CONFIG
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == CONFIG
    assert (tmp_path / "last.ckpt").exists()
    assert not list(tmp_path.glob(".*"))


class Writes(L.Callback):
    """Remembers which file run.json is at the end of each round, and the state in it."""

    def __init__(self, folder):
        self.folder, self.seen = folder, []

    def on_train_epoch_end(self, trainer, pl_module):
        path = self.folder / "run.json"
        self.seen.append((path.stat().st_mtime_ns, path.stat().st_ino, read(self.folder)["state"]))


def test_the_record_is_not_written_anew_at_every_evaluation(tmp_path):
    writes = Writes(tmp_path)
    run(tmp_path, callbacks=[writes])
    assert len({(time, inode) for time, inode, _ in writes.seen}) == 1
    assert {state for *_, state in writes.seen} == {"running"}
    assert "history" not in read(tmp_path)


def test_a_short_run_has_no_mean(tmp_path):
    record, _ = run(tmp_path, rounds=2)
    assert record["acc_last10"] is record["asr_last10"] is None
    assert record["acc_last10_rounds"] == [1, 2]
    assert record["acc"] is not None


def test_last_checkpoint_is_that_of_the_last_round(tmp_path):
    run(tmp_path)  # every third of four rounds, and the last
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 4
    assert torch.load(tmp_path / "previous.ckpt", weights_only=False)["global_step"] == 3
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"last.ckpt", "previous.ckpt"}


def test_a_resumed_run_adds_to_its_metrics(tmp_path):
    run(tmp_path, rounds=2)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(before + b'{"round": 3, "ac')  # killed while it wrote
    record, _ = run(tmp_path, changed(trainer={"max_epochs": 4, "devices": 7}), ckpt_path="last")
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(before)
    assert [entry["round"] for entry in evaluations(tmp_path)] == record["acc_last10_rounds"] == [1, 2, 3, 4]


def test_no_two_runs_train_in_one_folder(tmp_path):
    with locked(tmp_path / "training.lock"), pytest.raises(ConfigurationError, match="another run is training in"):
        run(tmp_path, rounds=1)
    run(tmp_path, rounds=1)
    run(tmp_path, rounds=1)  # the lock was given back


def put_aside(folder, number=1):
    return {path.name: path.read_bytes() for path in (folder / "earlier" / str(number)).iterdir() if path.is_file()}


def test_what_another_run_left_is_put_aside_all_of_it(tmp_path):
    run(tmp_path, rounds=2, callbacks=[FlipRates()])
    kept = {name: (tmp_path / name).read_bytes() for name in LEFT}
    run(tmp_path, changed(seed_everything=3), rounds=1, callbacks=[FlipRates()])
    assert put_aside(tmp_path) == kept
    assert len((tmp_path / "flip_rates.jsonl").read_text().splitlines()) == len(evaluations(tmp_path)) == 1
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["global_step"] == 1


LEFT = ("config.yaml", "flip_rates.jsonl", "last.ckpt", "metrics.jsonl", "run.json")


def test_the_same_run_again_does_not_replace_the_finished_one(tmp_path, caplog):
    run(tmp_path, rounds=2)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "training.lock"}
    run(tmp_path, rounds=1)
    assert put_aside(tmp_path) == first
    assert f"(2 rounds, finished) is kept in {tmp_path / 'earlier' / '1'}" in caplog.text
    run(tmp_path, rounds=1)
    assert json.loads(put_aside(tmp_path, 2)["run.json"])["rounds"] == 1


def test_a_checkpoint_is_put_aside_without_a_record_too(tmp_path):
    for rounds in (2, 1):
        callbacks = [LastCheckpoint()]
        fit(tiny_federation(), rounds=rounds, callbacks=callbacks, default_root_dir=str(tmp_path), enable_checkpointing=True)
    steps = [torch.load(path, weights_only=False)["global_step"] for path in sorted(tmp_path.rglob("last.ckpt"))]
    assert steps == [2, 1]


class FailsAt(L.Callback):
    def __init__(self, round_number, error):
        self.round_number, self.error = round_number, error

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.global_step == self.round_number:
            raise self.error


def test_a_run_that_never_got_to_a_checkpoint_begins_again_in_its_place(tmp_path):
    with pytest.raises(RuntimeError):
        run(tmp_path, callbacks=[FailsAt(2, RuntimeError("no luck"))])
    assert len(evaluations(tmp_path)) == 2
    run(tmp_path, rounds=4)
    assert [entry["round"] for entry in evaluations(tmp_path)] == [1, 2, 3, 4]
    assert not (tmp_path / "earlier").exists()


def test_going_on_elsewhere_puts_aside_what_is_there_and_takes_the_evaluations_along(tmp_path):
    run(tmp_path / "a", rounds=2)
    run(tmp_path / "b", changed(seed_everything=3), rounds=1)
    there = (tmp_path / "b" / "run.json").read_bytes()
    run(tmp_path / "b", rounds=4, ckpt_path=str(tmp_path / "a" / "last.ckpt"))
    assert put_aside(tmp_path / "b")["run.json"] == there
    assert evaluations(tmp_path / "b")[:2] == evaluations(tmp_path / "a")
    assert len(evaluations(tmp_path / "b")) == 4
    assert read(tmp_path / "b")["initial_weights_sha256"] == read(tmp_path / "a")["initial_weights_sha256"]


def test_a_trial_writes_nothing(tmp_path):
    run(tmp_path, rounds=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for trial in (True, 2):
        trainer = tiny_trainer(
            callbacks=[FlipRates(), BackdoorMetrics(), RunRecord(CONFIG), LastCheckpoint()],
            default_root_dir=str(tmp_path),
            enable_checkpointing=True,
            fast_dev_run=trial,
        )
        trainer.fit(tiny_federation(), tiny_data())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---- finished, stopped, interrupted, failed ----------------------------------------------------------------------------


def state(folder):
    record = read(folder)
    assert record["finished"] is (record["state"] == "finished")
    return record["state"], record["reason"]


def test_max_time_stops_a_run_and_the_next_start_goes_on(tmp_path):
    undisturbed, _ = run(tmp_path / "whole")
    folder = tmp_path / "parts"
    limits = {"max_time": timedelta(0), "check_val_every_n_epoch": 1}
    run(folder, callbacks=[NotBeforeRound1()], **limits)
    assert state(folder) == ("stopped", "max_time was over after round 1")
    run(folder, ckpt_path="last", callbacks=[NotBeforeRound1()], **limits)  # it gets the time anew
    assert state(folder)[0] == "stopped"
    assert read(folder)["rounds"] == 2
    resumed, _ = run(folder, ckpt_path="last")
    assert state(folder)[0] == "finished"
    assert resumed["weights_sha256"] == undisturbed["weights_sha256"]
    assert evaluations(folder) == evaluations(tmp_path / "whole")


class NotBeforeRound1(L.Callback):
    """Lets a run with no time at all begin: Lightning asks before the first round too."""

    def on_fit_start(self, trainer, pl_module):
        for callback in trainer.callbacks:
            if isinstance(callback, Timer):
                callback.on_fit_start = lambda *_: None


def test_the_evaluation_at_a_stop_is_gone_once_the_run_went_on(tmp_path):
    every = {"check_val_every_n_epoch": 2}
    run(tmp_path / "whole", rounds=5, **every)
    folder = tmp_path / "parts"
    run(folder, rounds=5, callbacks=[NotBeforeRound1()], max_time=timedelta(0), **every)
    assert [entry["round"] for entry in evaluations(folder)] == [1]
    run(folder, rounds=5, ckpt_path="last", **every)
    assert [entry["round"] for entry in evaluations(folder)] == [2, 4, 5]
    assert evaluations(folder) == evaluations(tmp_path / "whole")


def test_early_stopping_finishes_a_run(tmp_path):
    run(tmp_path, callbacks=[EarlyStopping("val/acc", stopping_threshold=-1.0, mode="max")])
    found, reason = state(tmp_path)
    assert found == "finished"
    assert reason.startswith("EarlyStopping after round 1: Stopping threshold reached: val/acc = ")


class Enough(L.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = True


def test_a_callback_of_the_users_own_finishes_a_run(tmp_path):
    run(tmp_path, callbacks=[Enough()])
    assert state(tmp_path) == ("finished", "a callback set trainer.should_stop in round 1")


def test_max_steps_finish_a_run(tmp_path):
    run(tmp_path, rounds=-1, max_steps=2)
    assert state(tmp_path) == ("finished", "all 2 rounds of max_steps are done")


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (RuntimeError("no\nluck"), ("failed", "RuntimeError after round 2: no luck")),
        (SIGTERMException(), ("interrupted", "SIGTERM after round 2")),
        (KeyboardInterrupt(), ("interrupted", "Ctrl-C after round 2")),
    ],
)
def test_what_broke_a_run_off_stands_in_its_record(tmp_path, error, found):
    with pytest.raises((RuntimeError, SIGTERMException, SystemExit)):
        run(tmp_path, callbacks=[FailsAt(2, error)])
    assert state(tmp_path) == found
    assert read(tmp_path)["rounds"] == 2


def test_nothing_is_written_before_everything_is_checked(tmp_path):
    wide = tiny_federation()
    wide.client.forward = lambda inputs: inputs[:, :2]
    with pytest.raises(ConfigurationError):
        run(tmp_path / "run", federation=wide)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"trainer\.default_root_dir: .* cannot be written to"):
        fit(tiny_federation(), callbacks=[RunRecord(CONFIG)], default_root_dir=str(tmp_path / "file" / "run"))


def test_a_record_of_a_version_that_kept_the_evaluations_in_it(tmp_path):
    record = RunRecord(CONFIG)
    record.load_state_dict({"history": [{"round": 1, "acc": 0.5}, {"round": 2, "acc": 0.25}], "config": CONFIG})
    assert record.history.entries == [{"round": 1, "acc": 0.5}, {"round": 2, "acc": 0.25}]


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    run(tmp_path, rounds=2)
    other = changed(model={"aggregator": {"class_path": "Invariant", "init_args": {"tau": 0.6}}, "attacks": [{}]})
    with pytest.raises(ConfigurationError, match=r"aggregator\.init_args\.tau is 0\.2 there and 0\.6 here"):
        run(tmp_path, other, ckpt_path="last")


def test_more_rounds_other_devices_and_other_paths_are_the_same_experiment(tmp_path):
    run(tmp_path, rounds=2)
    moved = changed(data={"path": "/there", "num": 1}, trainer={"max_epochs": 4, "devices": 7})
    run(tmp_path, moved, ckpt_path="last")
    assert [entry["round"] for entry in evaluations(tmp_path)] == [1, 2, 3, 4]


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


@pytest.mark.parametrize("in_the_way", ["earlier", "metrics.jsonl"])
def test_what_cannot_begin_leaves_the_record_that_is_there(tmp_path, in_the_way):
    record, _ = run(tmp_path)
    afresh = in_the_way == "earlier"  # what another run left could not be put aside
    (tmp_path / in_the_way).unlink(missing_ok=True)
    (tmp_path / "earlier").write_text("a note") if afresh else (tmp_path / in_the_way).mkdir()
    with pytest.raises(ConfigurationError, match=in_the_way):
        run(tmp_path, rounds=6, ckpt_path=None if afresh else "last")
    assert read(tmp_path) == record


def test_a_checkpoint_of_more_rounds_than_are_wanted_is_refused(tmp_path):
    record, _ = run(tmp_path)
    with pytest.raises(ConfigurationError, match=r"number of rounds, is 2, and the checkpoint is of round 4; give 4 or more"):
        run(tmp_path, rounds=2, ckpt_path="last")
    assert read(tmp_path) == record


def test_a_missing_last_checkpoint_is_told(tmp_path, caplog):
    run(tmp_path)
    (tmp_path / "last.ckpt").unlink()
    run(tmp_path, ckpt_path="last")
    assert "there is no last.ckpt" in caplog.text
    assert "previous.ckpt, is taken" in caplog.text
