"""First rounds that a sweep's runs share: what may be shared, what is refused, and that nothing shows in the results."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_federation

from fl_lightning import CohortSampler, ConfigurationError
from fl_lightning.attacks import Neurotoxin
from fl_lightning.cli import main
from fl_lightning.configuration import resolve
from fl_lightning.experiments import forks, job
from fl_lightning.experiments.planned import Fork, Run, missing_prefixes, prefixes
from fl_lightning.experiments.prefix import Prefix, same_rounds
from fl_lightning.experiments.results import read_results, write_index
from fl_lightning.experiments.run_folder import RunFolder, State
from fl_lightning.experiments.scheduler import write_config
from fl_lightning.experiments.settings import run_id
from fl_lightning.experiments.sweep import read_sweep
from fl_lightning.files.run_files import LockedError
from fl_lightning.files.sealed import sealed

BASE = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
LESS = ["--with", "Phishing.num_train=2000", "--with", "Phishing.num_test=300", "--", "--trainer.max_epochs", "4"]
SETTINGS = "{model: {aggregator: {class_path: FedAvg}}}"
FEDAVG_FIRST = f"{{rounds: 2, settings: {SETTINGS}}}"
RULES = "{FedAvg: {model: {aggregator: {class_path: FedAvg}}}, Invariant: null}"


def text(prefix: str, rules: str = RULES, cohort: str = "{start_round: 2}", more: str = "", seeds: str = "[0]") -> str:
    layers = f"[{BASE}, {{trainer: {{max_epochs: 4, logger: false, check_val_every_n_epoch: 3}}, model: {{cohort: {cohort}}}}}]"
    return f"base: {layers}\naxes:\n  rule: {rules}\n  seed: {seeds}\nprefix: {prefix}\n{more}"


def planned(folder: Path, *args: Any, **kwargs: Any) -> list[Run]:
    (folder / "some.yaml").write_text(text(*args, **kwargs))
    return read_sweep(folder / "some.yaml").runs(folder / "runs" / "pool")


def forked(run: Run) -> Fork:
    """What a run begins with."""
    assert run.fork is not None
    return run.fork


def test_runs_share_what_is_the_same_before_they_fork(tmp_path):
    fedavg, again, invariant, other = planned(tmp_path, FEDAVG_FIRST, seeds="[0, 1]")
    forks_ = [forked(run) for run in (fedavg, again, invariant, other)]
    assert [fork.run.id for fork in forks_] == [forks_[0].run.id, forks_[1].run.id] * 2
    assert [(fork.round, fork.exact, fork.rule) for fork in forks_] == [(2, True, None)] * 2 + [(2, False, "FedAvg")] * 2
    prefix = forks_[0].run
    assert prefix.folder.path == tmp_path / "runs" / "prefixes" / prefix.id
    assert prefix.config["trainer"]["max_epochs"] == 2
    assert prefix.config["trainer"]["default_root_dir"] == str(prefix.folder.path)
    assert prefix.config["model"]["attacks"] == fedavg.config["model"]["attacks"]  # so that ASR is measured there too
    assert [run.id for run in prefixes([fedavg, again, invariant, other])] == [prefix.id, forks_[1].run.id]
    # One that is forked from itself is the run that it was; one whose rule changes is another.
    assert fedavg.id == run_id(fedavg.config)
    assert invariant.id != run_id(invariant.config)


def test_attacks_may_differ_after_the_prefix(tmp_path):
    attacks = "{a: null, b: {model: {attacks: [{class_path: ValueTrigger, init_args: {poison_fraction: 0.3}}]}}}"
    together = planned(tmp_path, "{rounds: 2, settings: {model: {attacks: []}}}", rules=attacks)
    assert len({forked(run).run.id for run in together}) == 1
    assert [(forked(run).exact, forked(run).rule) for run in together] == [(False, None)] * 2  # rows of the prefix have no ASR
    assert all(run.id != run_id(run.config) for run in together)


def test_some_cells_may_be_run_from_their_start(tmp_path):
    """Those of rules that must be at work from the first round on: the runs that they are without `prefix`."""
    fedavg, invariant = planned(tmp_path, FEDAVG_FIRST[:-1] + ", exclude: [{rule: Invariant}]}")
    assert forked(fedavg).round == 2
    assert invariant.fork is None
    assert invariant.id == run_id(invariant.config)
    # The prefix's own rules do not hold for them.
    late = "{x: null, y: {model: {cohort: {start_round: 0}}}}"
    assert [run.fork is None for run in planned(tmp_path, "{rounds: 2, exclude: [{rule: y}]}", rules=late)] == [False, True]


def test_cells_with_and_without_a_prefix_are_kept_apart(tmp_path):
    """A cell that is known as one must not be taken for the other."""
    for exclude in ("[]", "[{rule: Invariant}]", "[]"):
        runs = planned(tmp_path, FEDAVG_FIRST[:-1] + f", exclude: {exclude}}}")
        assert [run.fork is None for run in runs] == [False, exclude != "[]"]


ONE = "{x: null}"


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("3", r"prefix must have `rounds` and may have `settings` and `exclude`, got 3"),
        ("{settings: null}", r"prefix must have `rounds`"),
        ("{rounds: 0}", r"prefix\.rounds must be a whole number of at least 1, got 0"),
        ("{rounds: true}", r"prefix\.rounds must be .*, got True"),
        ("{rounds: 2, setting: null}", r"prefix: unknown key setting; did you mean settings"),
        ("{rounds: 2, exclude: {rule: x}}", r"prefix\.exclude must be a list of mappings"),
        ("{rounds: 2, exclude: [{rule: X}]}", r"prefix\.exclude: axis rule has no X; did you mean x"),
        ("{rounds: 2, exclude: [{rule: x}]}", r"prefix\.exclude leaves no cell that begins with it; leave prefix out"),
        ("{rounds: 2, exclude: [{}]}", r"prefix\.exclude leaves no cell"),
        ("{rounds: 2, settings: gone.yaml}", r"prefix\.settings: there is no file .*gone\.yaml"),
        ("{rounds: 2, settings: 3}", r"prefix\.settings must be a file, settings, or a list"),
        ("{rounds: 2, settings: {model: {agregator: FedAvg}}}", r"^x: .*did you mean aggregator"),
        ("{rounds: 4}", r"^x: prefix\.rounds = 4, but trainer\.max_epochs = 4, so that no round is left"),
    ],
)
def test_a_mistake_in_it_is_named_before_anything_runs(tmp_path, prefix, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        planned(tmp_path, prefix, rules=ONE)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def quickstart() -> dict[str, Any]:
    return resolve(["fit", "--config", str(BASE)])


def overlaid(config: Any, place: str, value: Any) -> Any:
    """A configuration with another value at a place."""
    key, _, below = place.partition(".")
    return {**config, key: overlaid(config[key], below, value) if below else value}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("model.cohort.malicious_fraction", 0.0, r"from 0\.2 to 0\.0, but .* attackers that begin with round 2"),
        ("model.cohort.clients_per_round", 10, r"from 20 to 10"),
        ("model.cohort.participation", "random_pool", r"from 'fixed_share' to 'random_pool'"),
        ("seed_everything", 3, r"from 0 to 3"),
        ("data.init_args.num_test", 300, r"from \d+ to 300"),
        ("model.local.epochs", 2, r"from 1(\.0)? to 2"),
        ("model.client.init_args.sizes", [45, 9, 2], r"from .* to \[45, 9, 2\]"),
        ("model.start_from", "w.pt", r"from None to 'w\.pt'"),
        ("trainer.check_val_every_n_epoch", 7, r"from 1 to 7"),
    ],
)
def test_what_benign_training_depends_on_must_be_the_runs_own(quickstart, place, value, message):
    with pytest.raises(ConfigurationError, match=rf"^prefix\.settings changes {re.escape(place)} {message}"):
        Prefix(2, []).clean(quickstart, overlaid(quickstart, place, value))


def test_what_may_differ_and_what_must_be_there(quickstart):
    other = overlaid(overlaid(quickstart, "model.attacks", []), "model.cohort.start_round", 2)
    clean = Prefix(2, []).clean(quickstart, other)
    assert clean == overlaid(other, "trainer.max_epochs", 2)
    assert not same_rounds(quickstart, clean)  # without attacks there is no ASR
    for begin in (2, 3, 9):  # they have the first two rounds in common
        late = overlaid(quickstart, "model.cohort.start_round", begin)
        clean = Prefix(2, []).clean(late, late)
        assert clean["model"]["cohort"]["start_round"] == 2
        assert same_rounds(late, clean)
    for window in ({"end_round": 9}, {"end_round": 7, "interval": 3, "after": "absent"}):  # and whatever comes later
        ending = quickstart
        for name, value in {"start_round": 3, **window}.items():
            ending = overlaid(ending, f"model.cohort.{name}", value)
        assert Prefix(2, []).clean(ending, ending) == clean
        assert same_rounds(ending, clean)
    silent = overlaid(quickstart, "trainer.enable_checkpointing", False)
    with pytest.raises(ConfigurationError, match=r"enable_checkpointing = false, but runs go on from the last checkpoint"):
        Prefix(2, []).clean(silent, silent)


@pytest.mark.parametrize(
    ("cohort", "message"),
    [
        (
            {},
            r"model\.cohort\.start_round = 0: attackers may be active in round 0, but the prefix of 2 rounds must be clean",
        ),
        ({"start_round": 1}, r"start_round = 1: attackers may be active in round 1, .* begin with round 2, or give fewer"),
        ({"participation": "random_pool"}, r"active in round 0"),
        ({"participation": "fixed_frequency", "interval": 5, "start_round": 1}, r"active in round 1"),
        ({"participation": "single_shot", "rounds": (1, 3)}, r"model\.cohort\.rounds = \[1, 3\]: .* active in round 1"),
        ({"start_round": 2}, None),
        ({"malicious_fraction": 0.0}, None),
        ({"participation": "fixed_frequency", "interval": 5, "start_round": 2}, None),
        ({"participation": "single_shot", "rounds": (2, 3)}, None),
    ],
)
def test_a_run_whose_attackers_begin_too_early_is_refused(cohort, message):
    settings: dict[str, Any] = {"clients_per_round": 7, "malicious_fraction": 0.3, **cohort}
    federation = tiny_federation(cohort=CohortSampler(**settings))
    if message is None:
        Prefix(2, []).check(federation, federation)
        return
    with pytest.raises(ConfigurationError, match=message):
        Prefix(2, []).check(federation, federation)
    calm = tiny_federation(cohort=federation.cohort, attacks=[])
    Prefix(2, []).check(calm, calm)  # there is nobody who attacks


def test_what_the_prefix_itself_must_not_do_or_lack():
    late = tiny_federation(cohort=CohortSampler(clients_per_round=7, malicious_fraction=0.3, start_round=2))
    early = tiny_federation(cohort=CohortSampler(clients_per_round=7, malicious_fraction=0.3), attacks=[])
    with pytest.raises(ConfigurationError, match=r"prefix\.settings: by model\.cohort\.start_round = 0 malicious clients take"):
        Prefix(2, []).check(late, early)
    watching = tiny_federation(cohort=late.cohort, attacks=[Neurotoxin()])
    with pytest.raises(ConfigurationError, match=r"Neurotoxin needs to know the server's last step .* out of prefix\.settings"):
        Prefix(2, []).check(watching, tiny_federation(cohort=late.cohort, attacks=[]))
    Prefix(2, []).check(watching, watching)


def finish(run: Run, **record: Any) -> None:
    run.folder.path.mkdir(parents=True, exist_ok=True)
    (run.folder.path / "run.json").write_text(json.dumps(sealed({"finished": True, "state": "finished", **record})))


def test_a_run_is_not_begun_by_a_prefix_that_is_none(tmp_path):
    (run,) = planned(tmp_path, "{rounds: 2}", rules=ONE)
    prefix = forked(run).run
    assert missing_prefixes([run]) == [prefix]
    for each in (prefix, run):
        write_config(each)
    with pytest.raises(ConfigurationError, match=rf"begins with, {prefix.folder.path}, is pending: see its log\.txt"):
        forks.begin(run.folder)
    prefix.folder.write_status(State.FAILED, message="KeyError: 1")
    assert job.main([str(run.folder.path), "--", "touch", str(tmp_path / "ran")]) == 2
    assert run.folder.state is State.FAILED
    assert "is failed (KeyError: 1): see its log.txt; the sweep's next call tries it again" in run.folder.message
    with prefix.folder.lock(), pytest.raises(LockedError):
        forks.begin(run.folder)
    finish(prefix)
    with pytest.raises(ConfigurationError, match=r"there is no last\.ckpt in .*; delete .*prefixes.*, and the"):
        forks.begin(run.folder)
    note = run.folder.path / forks.NOTE
    note.write_text(note.read_text().replace('"round": 2', '"round": 3'))
    assert job.main([str(run.folder.path), "--", "touch", str(tmp_path / "ran")]) == 2
    assert "prefix.json is damaged" in run.folder.message
    assert not (tmp_path / "ran").exists()
    write_config(run)
    assert missing_prefixes([run]) == []
    (run.folder.path / "last.ckpt").touch()
    assert forks.begin(run.folder) == ""  # it has begun
    (plain,) = planned(tmp_path, "null", rules=ONE)
    assert plain.folder == run.folder
    write_config(plain)  # of a sweep without a prefix, in which the same run begins at its start
    assert not note.exists()


def test_prefixes_are_listed_apart_and_are_no_cells(tmp_path, capsys):
    (tmp_path / "some.yaml").write_text(text(FEDAVG_FIRST, rules=ONE))
    sweep = read_sweep(tmp_path / "some.yaml")
    runs = sweep.runs(tmp_path / "runs" / "pool")
    main(["sweep", "some.yaml", "--dry-run"])
    shown = capsys.readouterr().out
    assert "prefixes: 1 pending" in shown
    assert shown.rstrip().endswith("1 pending")
    assert shown.count(forked(runs[0]).run.id) == 1
    assert "0/2" in shown
    finish(forked(runs[0]).run, rounds=2, acc=0.5, acc_last10_rounds=[])
    write_index(tmp_path / "runs" / "sweeps" / "some", sweep, runs)
    results = read_results(tmp_path / "runs" / "sweeps" / "some", tmp_path / "runs" / "pool")
    assert (len(results.runs), len(results.cells)) == (1, 1)
    (row,) = results.prefixes.to_dict("records")
    assert {key: row[key] for key in ("id", "rule", "shared", "rounds", "state")} == {
        "id": forked(runs[0]).run.id, "rule": "FedAvg", "shared": 1, "rounds": 2, "state": "finished",
    }  # fmt: skip
    main(["report", str(tmp_path / "runs" / "sweeps" / "some")])
    folder = tmp_path / "runs" / "sweeps" / "some"
    assert f"| {row['id']} | 0 | FedAvg | 1 | 2 | finished |" in (folder / "table.md").read_text()
    assert ", of 1 run:" in (folder / "report.html").read_text()
    assert row["id"] not in (folder / "runs.csv").read_text()


@pytest.mark.slow
def test_a_sweep_runs_its_prefix_once_and_its_runs_are_as_without(tmp_path, capsys):
    (tmp_path / "some.yaml").write_text(text(FEDAVG_FIRST))
    main(["sweep", "some.yaml", "--jobs", "2", *LESS])
    said = capsys.readouterr().out
    assert "The prefix is trained with FedAvg; a run with another rule begins it after the prefix" in said
    assert said.index("1/3 finished: prefix") < said.index("2/3 finished")
    assert said.count("finished: prefix") == 1
    pool, given = tmp_path / "runs" / "pool", {"Phishing.num_train": 2000, "Phishing.num_test": 300}
    fedavg, invariant = read_sweep(tmp_path / "some.yaml").runs(pool, given)
    assert fedavg.folder.log.read_text().startswith(f"forked from {forked(fedavg).run.folder.path} after round 2\n")
    assert "the rule was FedAvg until then, and the run's own begins without a memory" in invariant.folder.log.read_text()
    plain = ["--config", str(fedavg.folder.config), "--trainer.default_root_dir", "plain"]
    main(["fit", *plain])
    whole = RunFolder(tmp_path / "plain")
    assert whole.metrics == fedavg.folder.metrics
    assert [entry["round"] for entry in whole.metrics] == [3, 4]
    for key in ("weights_sha256", "initial_weights_sha256", "acc", "asr", "config_hash", "excluded_updates"):
        assert whole.record[key] == fedavg.folder.record[key], key
    assert invariant.folder.record["prefix"]["rule"] == "FedAvg"
    assert invariant.folder.record["config_hash"] != whole.record["config_hash"]
