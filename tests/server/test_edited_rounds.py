"""Rules that edit the global model: the same bits on any number of ranks and after a resume, also among hostile updates."""

import math
from pathlib import Path
from typing import Any

import pytest
from ranks import on_ranks
from tiny import Scale, fit, tiny_federation

from fl_lightning import BackdoorMetrics
from fl_lightning.aggregators import CRFL, Aggregator, BackdoorIndicator, Bucketing, Lockdown
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.data import Noise

RULES: dict[str, Any] = {
    "CRFL": lambda: CRFL(initial_norm=1.5, sigma=0.02, sigma_test=0.05, copies=5),
    "BackdoorIndicator": lambda: BackdoorIndicator(
        ood=Noise(samples=30, low=-1.0), epochs=2, learning_rate=0.1, threshold=0.85
    ),
    "Lockdown": lambda: Lockdown(rounds=2, batch_size=8, anneal=0.3, theta=0.6),
    "Bucketing, CRFL": lambda: Bucketing(rule=CRFL(initial_norm=1.5, copies=5)),
}


def ran(rule: Aggregator, factor: float = 3.0, path: Any = None, save: Any = None, **kwargs: Any) -> dict[str, Any]:
    """A run, its model, what was measured, and the last round's verdict."""
    federation = tiny_federation(aggregator=rule, attacks=[Scale(factor)])
    settings: dict[str, Any] = {"rounds": 2, **kwargs}
    trainer = fit(federation, ckpt_path=path, callbacks=[BackdoorMetrics()], **settings)
    if save is not None:
        trainer.save_checkpoint(save)
    assert federation.outcome is not None
    verdict = federation.outcome.verdict
    return {
        "weights": weights_sha256(federation.client),
        "metrics": {name: value.item() for name, value in trainer.callback_metrics.items()},
        "verdict": None if verdict is None else verdict.tolist(),
        "refused": federation.refused_rounds,
    }


def on_a_rank(world: int, folder: str | None) -> dict[str, Any]:
    paths = {name: None if folder is None else f"{folder}/{name}.ckpt" for name in RULES}
    return {name: ran(make(), path=paths[name], devices=world) for name, make in RULES.items()}


def test_same_bits_on_any_number_of_ranks_and_after_a_resume_on_another(tmp_path: Path) -> None:
    alone = on_a_rank(1, None)
    for name, make in RULES.items():
        ran(make(), rounds=1, save=tmp_path / f"{name}.ckpt", max_epochs=2, max_steps=1)
    assert len({found["weights"] for found in alone.values()}) == len(RULES)
    assert alone["BackdoorIndicator"]["verdict"] is not None
    for world, folder in ((2, None), (3, str(tmp_path))):
        for found in on_ranks(world, on_a_rank, world, folder):
            for name, expected in alone.items():
                assert found[name] == expected, f"{name} on {world} ranks"


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e30])
def test_hostile_updates_leave_a_finite_model(name: str, factor: float) -> None:
    found = ran(RULES[name](), factor, rounds=1)
    assert all(math.isfinite(value) for key, value in found["metrics"].items() if key.startswith("val/"))
    assert found["metrics"]["round/excluded_updates"] == (0 if math.isfinite(factor) else 2)
