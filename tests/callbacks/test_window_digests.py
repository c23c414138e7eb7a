"""A window that is left out changes no digest of settings."""

from typing import Any

import pytest

from fl_lightning.callbacks.digests import compare, config_sha256, experiment

OLD = {"clients_per_round": 20, "malicious_fraction": 0.2, "start_round": 0, "attackers": 1, "rounds": []}


def digest(**cohort: Any) -> str:
    return config_sha256({"model": {"cohort": {**OLD, **cohort}}})


SAME = [
    ("fixed_share", 10, None),
    ("fixed_share", 10, 1),
    ("fixed_frequency", 10, None),
    ("fixed_frequency", 10, 10),
    ("fixed_frequency", 3, 3),
    ("single_shot", 10, None),
]
"""Kind, `every` as it was written before, and `interval` of now."""


@pytest.mark.parametrize(("kind", "every", "interval"), SAME)
def test_a_window_left_out_leaves_the_digest_as_it_was(kind, every, interval):
    window = {"interval": interval, "end_round": None, "after": "benign"}
    assert digest(participation=kind, every=every) == digest(participation=kind, **window)
    assert digest(participation=kind, **window) != digest(participation=kind, **{**window, "end_round": 5})
    assert digest(participation=kind, **window) != digest(participation=kind, **{**window, "interval": 7})


def test_the_digest_of_before_is_the_one_that_it_was():
    assert digest(participation="fixed_share", every=10)[:16] == "cf47edf16decedf2"


def test_a_difference_goes_by_its_name_of_now():
    there, here = (
        {"model": {"cohort": {**OLD, "participation": "fixed_frequency", key: n}}} for key, n in (("every", 3), ("interval", 5))
    )
    told = list(compare(experiment(there, rounds=False), experiment(here, rounds=False)))
    assert told == ["model.cohort.interval is 3 there and 5 here"]
