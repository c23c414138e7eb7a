"""What is said of settings that work but may not do what was meant."""

import logging

import pytest
from tiny import fit, tiny_data, tiny_federation

from fl_lightning import CohortSampler
from fl_lightning.aggregators import FLARE, FedAvg
from fl_lightning.data.root import RootSet
from fl_lightning.options.remarks import of_root


def said(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "fl_lightning.options.remarks"]


@pytest.mark.parametrize(
    ("settings", "remark"),
    [
        ({}, None),
        ({"cohort": CohortSampler(clients_per_round=5, malicious_fraction=0.0, start_round=9), "attacks": []}, None),
        ({"cohort": CohortSampler(clients_per_round=5, malicious_fraction=0.3, start_round=1)}, None),
        ({"attacks": []}, "malicious_fraction = 0.3, but there are no model.attacks"),
        (
            {"cohort": CohortSampler(clients_per_round=5, malicious_fraction=0.7), "aggregator": FedAvg()},
            "malicious_fraction = 0.7: most clients attack",
        ),
        (
            {"cohort": CohortSampler(clients_per_round=5, malicious_fraction=0.3, start_round=2)},
            "start_round = 2: without an attack, as the run has 2 rounds",
        ),
        (
            {"cohort": CohortSampler(clients_per_round=5, malicious_fraction=0.3, participation="single_shot", rounds=(0, 2))},
            "rounds = [2]: without an attack",
        ),
        ({"cohort": CohortSampler(5, 0.3, end_round=1)}, None),
        (
            {"cohort": CohortSampler(5, 0.3, end_round=2)},
            "end_round = 2: no round comes after the attack, as the run has 2 rounds",
        ),
        ({"cohort": CohortSampler(5, 0.3, end_round=9)}, "end_round = 9: no round comes after the attack"),
        (
            {"cohort": CohortSampler(5, 0.3, interval=2)},
            "interval = 2: round 0 alone is attacked, as the run ends before the next one",
        ),
        (
            {"cohort": CohortSampler(5, 0.3, interval=2, end_round=1)},
            "interval = 2: round 0 alone is attacked, as the attack ends before the next one",
        ),
        (
            {"cohort": CohortSampler(1, 0.1, participation="random_pool", end_round=1), "aggregator": FedAvg()},
            "no malicious client is drawn in 1 attacked rounds, 0 to 0; for a share in every round",
        ),
    ],
)
def test_of_cohorts(settings, remark, caplog):
    with caplog.at_level(logging.WARNING, "fl_lightning"):
        fit(tiny_federation(**settings), rounds=2)
    assert [remark in line for line in said(caplog)] == ([] if remark is None else [True])


def test_of_a_root_set_that_nobody_reads(caplog):
    with caplog.at_level(logging.WARNING, "fl_lightning"):
        fit(tiny_federation(), tiny_data(root=RootSet(samples=20)), rounds=1)
    (line,) = said(caplog)
    assert line == "data.root keeps 20 samples from the clients, and Invariant never reads them"


def test_of_a_root_set_that_models_are_looked_at_on():
    data = tiny_data(root=RootSet(samples=20))
    data.setup("fit")
    assert list(of_root(FLARE(), data)) == []
    assert len(list(of_root(FedAvg(), data))) == 1
