"""BackdoorLifespan in a run: what it refuses, and where what it finds is written."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger
from tiny import fit, tiny_federation

from fl_lightning import BackdoorLifespan, BackdoorMetrics, CohortSampler, ConfigurationError, RunRecord, experiments
from fl_lightning.attacks import SignFlip
from fl_lightning.callbacks.lifespan import columns, lifespan

WINDOW = CohortSampler(clients_per_round=5, malicious_fraction=0.3, start_round=1, end_round=3)


def run(
    folder: Path, rounds: int = 5, callbacks: Any = None, *, cohort: CohortSampler = WINDOW, **kwargs: Any
) -> dict[str, Any]:
    """A run's record."""
    callbacks = (
        [BackdoorLifespan(kappa=0.05, horizons=[1, 9]), BackdoorMetrics(), RunRecord({"model": 1})]
        if callbacks is None
        else callbacks
    )
    options = {name: kwargs.pop(name) for name in ("attacks",) if name in kwargs}
    fit(tiny_federation(cohort=cohort, **options), rounds=rounds, callbacks=callbacks, default_root_dir=str(folder), **kwargs)
    return json.loads((folder / "run.json").read_text())


def test_what_is_found_stands_in_the_record_in_loggers_in_the_summary_and_in_frames(tmp_path, capsys):
    record = run(tmp_path / "run", logger=CSVLogger(tmp_path / "logs"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5]
    expected = lifespan(lines, 1, 2, kappa=0.05, horizons=[1, 9])
    assert expected.state == "measured"
    assert record["lifespan"] == json.loads(json.dumps(expected.as_json()))
    assert record["lifespan"]["clean_asr_round"] == 1
    assert "Lifespan of the backdoor" in capsys.readouterr().out
    (table,) = (tmp_path / "logs").rglob("metrics.csv")
    assert "lifespan/first_fall" in table.read_text()
    frame = experiments.runs(tmp_path)
    numbers = {name: value for name, value in columns(record["lifespan"]).items() if value == value}
    assert numbers.items() <= frame.iloc[0].to_dict().items()
    assert frame["lifespan"].tolist() == ["measured"]


def test_evaluations_far_apart_give_bounds(tmp_path):
    record = run(tmp_path, 8, check_val_every_n_epoch=4)
    assert record["lifespan"]["attack_over"] == 3
    assert record["lifespan"]["asr_end_round"] in (4, 8)
    assert record["lifespan"]["resolution"] == 4


def test_of_a_single_shot_and_of_nobody(tmp_path):
    shot = CohortSampler(5, 0.3, participation="single_shot", rounds=(1, 1))
    assert run(tmp_path / "shot", cohort=shot)["lifespan"]["attack_over"] == 2
    calm = CohortSampler(5, 0.0)
    assert run(tmp_path / "calm", cohort=calm)["lifespan"]["state"] == "no attack"


def test_a_run_that_ends_with_the_attack_says_so_before(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "fl_lightning"):
        record = run(tmp_path, 2)
    assert any("the last attack is in round 2 of 2, counted from 0; a longer run" in line for line in caplog.messages)
    assert any("end_round = 3: no round comes after the attack, as the run has 2" in line for line in caplog.messages)
    assert record["lifespan"]["state"] == "unknown"


def test_a_run_without_it_has_no_such_key(tmp_path):
    assert "lifespan" not in run(tmp_path, 1, [BackdoorMetrics(), RunRecord({"model": 1})])
    assert "lifespan" not in experiments.runs(tmp_path)


@pytest.mark.parametrize(
    ("settings", "callbacks", "message"),
    [
        ({"cohort": CohortSampler(5, 0.3)}, None, "the attack has no end; give model.cohort.end_round"),
        ({"attacks": [SignFlip()]}, None, "needs an ASR, but model.attacks stamps no test samples"),
        ({}, [BackdoorLifespan(), BackdoorMetrics()], "needs RunRecord; add it"),
        ({}, [BackdoorLifespan(), RunRecord()], "needs BackdoorMetrics; add it"),
        (
            {"check_val_every_n_epoch": 2},
            [BackdoorLifespan(excess=True), BackdoorMetrics(), RunRecord()],
            "no round is evaluated before the first one under attack, 1; give clean_asr",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_training(settings, callbacks, message, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        run(tmp_path, 1, callbacks, **settings)
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kappa": 1.0}, r"kappa must lie in \[0, 1\), got 1"),
        ({"kappa": "0.5"}, "kappa must be a number"),
        ({"kappa": float("nan")}, "kappa is a share and lies in"),
        ({"clean_asr": 1.5}, r"clean_asr is a share and lies in \[0, 1\], got 1.5"),
        ({"margin": -0.1}, "margin is a share"),
        ({"excess": "yes"}, "excess must be true or false, got 'yes'"),
        ({"horizons": 100}, "horizons must be a list of whole numbers, got 100"),
        ({"horizons": "100"}, "horizons must be a list"),
        ({"horizons": [0]}, "each of BackdoorLifespan.horizons must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        BackdoorLifespan(**settings)
