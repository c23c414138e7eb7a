import csv
import json
from pathlib import Path

import numpy as np
import pytest

from fl_lightning import ConfigurationError
from fl_lightning.analysis.certify import certify, find_record, rates, setting_of
from fl_lightning.analysis.theory import Setting, theorem10
from fl_lightning.callbacks.flip_rates import RoundFlips, read_flip_rates
from fl_lightning.cli import main

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")
RECORD = [
    RoundFlips(round=0, benign=4, malicious=1, counts=[50, 30, 10, 9, 1], zeros=7),
    RoundFlips(round=1, benign=3, malicious=1, counts=[90, 10, 0, 0], zeros=3),
]


def test_rates_are_those_of_all_coordinates():
    every = [k / 4 for k, count in enumerate(RECORD[0].counts) for _ in range(count)]
    every += [k / 3 for k, count in enumerate(RECORD[1].counts) for _ in range(count)]
    found = dict(rates(RECORD))
    assert found["mean"] == pytest.approx(np.mean(every))
    for name, share in (("median", 0.5), ("90%", 0.9), ("99%", 0.99)):
        assert found[name] == np.quantile(every, share, method="inverted_cdf")
    assert found["max"] == 1.0


def test_bounds_are_taken_at_these_rates():
    setting = Setting(5, 1, alpha=0.2, tau=0.5)
    found = certify(setting, RECORD, rounds=10, distance=1.0, smallest=0.5, largest=0.5)
    assert (found.rounds, found.coordinates) == (2, 100)
    assert found.zero_share == pytest.approx(10 / 200)
    for at in found.at:
        assert at.bounds == theorem10(setting, at.p)
    assert found.at[0].progress.corrected > found.at[-1].progress.corrected


def test_attackers_who_have_not_begun_count():
    rule = {"class_path": "fl_lightning.aggregators.Invariant", "init_args": {"alpha": 0.2, "tau": 0.2, "inclusive": True}}
    cohort = {"clients_per_round": 10, "malicious_fraction": 0.2, "start_round": 5, "rounds": []}
    config = {"model": {"aggregator": rule, "cohort": cohort}}
    before = RoundFlips(round=0, benign=10, malicious=0, counts=[1] * 11, zeros=0)
    assert setting_of(config, [before]) == Setting(10, 2, alpha=0.2, tau=0.2, inclusive=True)
    more = RoundFlips(round=6, benign=7, malicious=3, counts=[1] * 8, zeros=0)
    assert setting_of(config, [before, more]).malicious == 3


def test_where_the_record_lies(tmp_path):
    folder = tmp_path / "run"
    config = {"trainer": {"default_root_dir": str(folder)}}
    with pytest.raises(ConfigurationError, match="add FlipRates to trainer"):
        find_record(config, tmp_path / "config.yaml")
    folder.mkdir()
    (folder / "flip_rates.jsonl").touch()
    assert find_record(config, tmp_path / "config.yaml") == folder / "flip_rates.jsonl"
    (tmp_path / "flip_rates.jsonl").touch()  # a run that was moved lies beside its configuration
    assert find_record(config, tmp_path / "config.yaml") == tmp_path / "flip_rates.jsonl"
    assert find_record(config, tmp_path / "other.yaml") == folder / "flip_rates.jsonl"


def fit(folder, *args):
    small = ["--data.init_args.num_train", "2000", "--data.init_args.num_test", "300", "--trainer.logger", "false"]
    where = ["--trainer.default_root_dir", str(folder), "--trainer.max_epochs", "2"]
    main(["fit", "--config", QUICKSTART, *where, *small, *args])


def test_from_a_run_to_its_certificate(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "certificate"
    fit(run, "--trainer.callbacks+", "FlipRates")
    capsys.readouterr()
    main(["analyse", "certify", "--config", str(run / "config.yaml"), "--output", str(out)])
    shown = " ".join(capsys.readouterr().out.split())
    for expected in (
        "N = 20, N' = 4, alpha = 0.25 trims b = 5, consistency > 0.6 takes a majority of x_min = 17.",
        "N' <= b: 4 <= 5 holds.",
        "x_min >= N - b: 17 >= 15 holds",
        "16 benign votes against 4 give 12, and 13 are needed: all-out opposition freezes every coordinate.",
        "In Theorem 10's regime.",
        "2 rounds, 39,426 coordinates",
    ):
        assert expected in shown
    record = read_flip_rates(run / "flip_rates.jsonl")
    with (out / "certify.csv").open() as file:
        rows = {row["flip rate"]: row for row in csv.DictReader(file)}
    assert float(rows["mean"]["p"]) == pytest.approx((record[0].rate + record[1].rate) / 2)
    assert float(rows["mean"]["p-"]) == 0.0  # the veto
    written = json.loads((out / "certify.json").read_text())
    assert written["in_regime"] is True
    assert written["survives_veto"] is False
    assert written["certificate"]["at"][0]["p"] == float(rows["mean"]["p"])
    # With another threshold the same record is outside of the regime.
    looser = ["--", "--model.aggregator.init_args.tau", "0.2"]
    main(["analyse", "certify", "--config", str(run / "config.yaml"), "--output", str(out), *looser])
    assert "x_min >= N - b: 13 >= 15 FAILS" in capsys.readouterr().out


def test_runs_that_cannot_be_certified(tmp_path, capsys):
    def refusal(*args):
        with pytest.raises(SystemExit) as left:
            main(["analyse", "certify", *args])
        assert left.value.code == 2
        return capsys.readouterr().err

    where = ["--", "--trainer.default_root_dir", str(tmp_path)]
    assert "add FlipRates to trainer.callbacks" in refusal("--config", QUICKSTART, *where)
    (tmp_path / "flip_rates.jsonl").write_text('{"round": 0, "beni')
    assert "holds no round yet" in refusal("--config", QUICKSTART, *where)
    (tmp_path / "flip_rates.jsonl").write_text(json.dumps(RECORD[0].__dict__) + "\n")
    assert "model.aggregator is Median" in refusal("--config", QUICKSTART, *where, "--model.aggregator", "Median")
    assert "needs --config FILE" in refusal()
