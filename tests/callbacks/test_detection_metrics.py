"""Whether those whom the rule turned away were malicious."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from sklearn.metrics import roc_auc_score
from tiny import Scale, fit, tiny_data, tiny_federation, tiny_trainer

from fl_lightning import CohortSampler, ConfigurationError, DetectionMetrics, LastCheckpoint, RunRecord
from fl_lightning.aggregators import Bucketing, FedAvg, Krum, NormClipping, TrimmedMean
from fl_lightning.callbacks.detection_metrics import Detections, detect


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_scikit_learns(clients):
    verdict = torch.tensor([value / 4 for value, _ in clients])
    malicious = torch.tensor([bad for _, bad in clients])
    rates = detect(verdict, malicious, 0.5).rates
    if malicious.all() or not malicious.any():
        assert "auroc" not in rates
    else:
        assert rates["auroc"] == pytest.approx(roc_auc_score(malicious.numpy(), -verdict.numpy()), abs=1e-12)


def test_by_hand():
    # The mean is .5, half of it .25: below are clients 0, 1, and 4.
    verdict = torch.tensor([0.0, 0.1, 0.9, 0.7, 0.2, 0.6, 1.0])
    malicious = torch.tensor([True, True, True, False, False, False, False])
    found = detect(verdict, malicious, 0.5)
    assert (found.away_malicious, found.away_benign, found.below_malicious, found.below_benign) == (1, 0, 2, 1)
    assert found.rates == {"tpr": 1 / 3, "fpr": 0, "tpr_below": 2 / 3, "fpr_below": 0.25, "auroc": 9 / 12}
    assert detect(torch.zeros(3), torch.tensor([True, False, False]), 0.5).rates == {
        "tpr": 1, "fpr": 1, "tpr_below": 1, "fpr_below": 1, "auroc": 0.5
    }  # fmt: skip
    assert detect(torch.ones(2), torch.tensor([False, False]), 0.5).rates == {"fpr": 0, "fpr_below": 0}
    both = found + detect(torch.ones(7), malicious, 0.5)
    assert (both.rounds, both.rates["tpr"], both.rates["auroc"]) == (2, 1 / 6, (9 + 6) / 24)


def devices():
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def run(folder, rounds, ckpt_path=None, rule=None, callbacks=(), **kwargs):
    """Attackers from round 1 on."""
    cohort = CohortSampler(clients_per_round=7, malicious_fraction=0.3, start_round=1)
    metrics = DetectionMetrics()
    trainer = tiny_trainer(
        rounds,
        callbacks=[RunRecord({"model": "tiny"}), metrics, *callbacks],
        devices=devices(),
        default_root_dir=folder,
        enable_checkpointing=True,
    )
    federation = tiny_federation(**{"cohort": cohort, "aggregator": rule or NormClipping(max_norm=1.0), **kwargs})
    trainer.fit(federation, tiny_data(), ckpt_path=ckpt_path)
    return {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("detection/")}


def resumed(folder):
    return run(folder, 4, ckpt_path=f"{folder}/last.ckpt")


def test_a_run_that_goes_on_with_other_ranks_has_the_same_numbers(tmp_path):
    logged = run(tmp_path / "whole", 4)
    assert {logged.pop("detection/clean_fpr"), logged.pop("detection/clean_fpr_below")} == {0.0}  # of the first round
    run(tmp_path / "parts", 2, callbacks=[LastCheckpoint()])
    assert on_ranks(2, resumed, str(tmp_path / "parts")) == [logged] * 2
    found, lines = [], []
    for name in ("whole", "parts"):
        found.append(json.loads((tmp_path / name / "run.json").read_text())["detection"])
        lines.append((tmp_path / name / "detection.jsonl").read_text())
    assert found[0] == found[1]
    assert lines[0] == lines[1]
    assert (found[0]["attacked_rounds"], found[0]["clean_rounds"], found[0]["clean_fpr"]) == (3, 1, 0.0)
    rounds = [json.loads(line) for line in lines[0].splitlines()]
    assert [entry.pop("round") for entry in rounds] == [0, 1, 2, 3]
    attacked = sum((Detections(1, **entry) for entry in rounds if entry["malicious"]), Detections())
    assert {name: found[0][name] for name in attacked.rates} == attacked.rates
    assert found[0]["auroc"] == sum(e["pairs_told"] for e in rounds) / sum(e["pairs"] for e in rounds)
    assert set(logged) == {f"detection/{name}" for name in ("turned_away", *attacked.rates)}


def test_updates_that_are_not_finite_are_turned_away(tmp_path):
    class Seen(DetectionMetrics):
        def on_aggregate(self, federation, shard, aggregate):
            super().on_aggregate(federation, shard, aggregate)
            outcome = federation.outcome
            assert len(outcome.verdict) == len(outcome.cohort) == 7
            assert torch.equal(outcome.verdict[~outcome.stays], torch.zeros(int(outcome.cohort.malicious.sum())))
            assert torch.equal(outcome.verdict[outcome.stays], shard.verdict)
            assert outcome.cohort.clients[outcome.stays].tolist() == shard.clients.tolist()

    seen = Seen()
    trainer = tiny_trainer(2, callbacks=[seen], default_root_dir=tmp_path)
    trainer.fit(tiny_federation(aggregator=NormClipping(), attacks=[Scale(math.nan)]), tiny_data())
    results = seen.over_the_run()
    assert (results["tpr"], results["fpr"], results["auroc"], results["clean_fpr"]) == (1.0, 0.0, 1.0, None)


def test_where_no_update_is_left_all_are_turned_away(tmp_path):
    class Everyone(Scale):
        def corrupt(self, shard, knowledge):
            for bucket in shard.buckets:
                bucket.fill_(math.nan)
            shard.finite = None

    metrics = DetectionMetrics()
    trainer = tiny_trainer(1, callbacks=[metrics], default_root_dir=tmp_path)
    trainer.fit(tiny_federation(aggregator=Krum(), attacks=[Everyone(1.0)]), tiny_data())
    assert metrics.over_the_run()["turned_away"] == 7


@pytest.mark.parametrize(
    ("rule", "remedy"),
    [
        (FedAvg(), "FedAvg does not judge clients; take another rule, or leave the callback out"),
        (TrimmedMean(), "TrimmedMean does not judge clients; set verdicts of TrimmedMean to true"),
        (Bucketing(rule=TrimmedMean()), "Bucketing does not judge clients; set verdicts of TrimmedMean to true"),
    ],
)
def test_a_rule_that_does_not_judge_is_named_before_training(tmp_path, caplog, rule, remedy):
    with caplog.at_level(logging.WARNING):
        assert run(tmp_path, 1, rule=rule) == {}
    assert [r.getMessage() for r in caplog.records if "Detection" in r.getMessage()] == [
        f"DetectionMetrics measures nothing: {remedy}"
    ]
    assert "detection" not in json.loads((tmp_path / "run.json").read_text())
    assert not (tmp_path / "detection.jsonl").exists()


def test_a_rule_that_forgets_to_judge_is_told_once(caplog):
    class Forgetful(FedAvg):
        judges = True

    with caplog.at_level(logging.WARNING):
        fit(tiny_federation(aggregator=Forgetful()), rounds=2, callbacks=[DetectionMetrics()])
    assert caplog.text.count("judges of Forgetful is true, but its forward has not called shard.judge") == 1
    assert "in round 0" in caplog.text


@pytest.mark.parametrize("threshold", [0, 1.5, -1, np.nan])
def test_thresholds_out_of_range_are_refused(threshold):
    with pytest.raises(ConfigurationError, match=r"DetectionMetrics.threshold must lie in \(0, 1\], got"):
        DetectionMetrics(threshold=threshold)
