"""FLIP: the server's part, what is refused, ranks and resuming."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from quick_flip import quick, rng
from ranks import on_ranks
from tiny import CLASSES, FEATURES, TinyClient, fit, tiny_federation, tiny_tensors
from torch import Tensor

from fl_lightning import ConfigurationError, FederatedDataModule, Federation
from fl_lightning.aggregators import FLIP
from fl_lightning.aggregators.trigger_inversion import TriggerInversion
from fl_lightning.callbacks import BackdoorMetrics, LastCheckpoint
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.data import IID, Classes, MapSamples, Samples, TensorSamples
from fl_lightning.models import MLP
from fl_lightning.modules import replayed_steps
from fl_lightning.updates import UpdateShard

# ---- the server's part ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7])
def test_is_the_plain_mean(n: int) -> None:
    updates = torch.randn(n, 500, generator=rng())
    weights = torch.arange(1.0, n + 1)
    expected = updates.double().numpy().sum(axis=0) / n
    np.testing.assert_allclose(FLIP()(updates, weights).numpy(), expected, atol=1e-6)
    shard = UpdateShard.from_updates(updates, weights)
    assert torch.equal(FLIP().aggregate_buffers(shard), FLIP()(updates, weights))


def test_predictions_without_confidence_are_rejected() -> None:
    probabilities = torch.tensor([[0.39, 0.38, 0.23], [0.4, 0.3, 0.3], [0.0, 0.0, 1.0], [math.nan] * 3])
    assert FLIP(confidence=0.4).accepts(probabilities).tolist() == [False, True, True, False]
    assert FLIP(confidence=1.0).accepts(probabilities).tolist() == [False, False, True, False]
    assert FLIP(confidence=0.0).accepts(probabilities).all()
    assert FLIP().confidence == 0.4


class Echo(TinyClient):
    """Predicts what it is given."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


def test_rejected_predictions_are_errors_and_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Federation, "data", SimpleNamespace(outcome=Classes()))
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.39, 0.38, 0.23], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    targets = torch.tensor([0, 0, 1, 0])  # the second is right, but not sure; the last is wrong
    batch = (probabilities.log(), targets), targets
    found = {}
    for confidence in (0.0, 0.4, 0.6):
        outputs = tiny_federation(client=Echo(), aggregator=FLIP(confidence=confidence)).validation_step(batch, 0)
        assert outputs is not None
        found[confidence] = outputs["hits"].tolist()
    assert found[0.0] == [True, True, True, False]
    assert found[0.4] == [True, False, True, False]
    assert found[0.6] == [False, False, True, False]


def test_acc_and_asr_are_nothing_where_all_is_rejected() -> None:
    federation = tiny_federation(aggregator=quick(confidence=1.0, max_steps=0))
    metrics = fit(federation, rounds=1, callbacks=[BackdoorMetrics()]).callback_metrics
    assert float(metrics["val/acc"]) == float(metrics["val/asr"]) == 0


# ---- mistakes ----------------------------------------------------------------------------------------------------------------


def sequences(n: int, classes: int) -> TensorSamples:
    return TensorSamples(torch.zeros(n, 7, 5), torch.arange(n) % classes)


@pytest.mark.parametrize(
    ("rule", "data", "classes", "message"),
    [
        (FLIP(), sequences(4, 2), 2, r"float32 of shape \(1, 7, 5\); it is not applicable to text"),
        (FLIP(), MapSamples([{"words": torch.zeros(3), "label": 0}]), 2, "are dict; it is not applicable to text"),
        (FLIP(), MapSamples([((torch.zeros(3), torch.zeros(3)), 0)]), 2, "not applicable to text or to several inputs"),
        (FLIP(), tiny_tensors(4), 1, "from one class to another, but the task has 1"),
        (
            FLIP(),
            TensorSamples(torch.zeros(4, 3, 32, 32), torch.zeros(4)),
            101,
            r"101 classes of inputs \(3, 32, 32\) take 159 MiB of memory per client; use it for at most 100 classes",
        ),
        (FLIP(inversion=TriggerInversion(initial_mask="published")), tiny_tensors(4), 3, "rows of 6 features; use uniform"),
    ],
)
def test_tasks_that_do_not_fit_are_refused(rule: FLIP, data: Samples, classes: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        rule.client_memory_size(data, classes)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("confidence", -0.1),
        ("confidence", 1.1),
        ("random_fraction", math.nan),
        ("stamp_fraction", 0.0),
        ("stamp_fraction", 1.5),
        ("max_coverage", 0.0),
        ("epochs", 0),
        ("max_steps", -1),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
    ],
)
def test_settings_outside_their_ranges_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"FLIP\.{setting} must .*, got {value}"):
        FLIP(**{setting: value})


def run(
    folder: str, rounds: int, world: int, resume: bool, record_after: float | None = None, classes: int = CLASSES
) -> tuple[Any, ...]:
    """Digest of the weights, metrics, what clients keep on this rank; of a client that is recorded after so many seconds."""
    own: dict[str, Any] = {}
    rule, data = quick(batch_size=32), None
    if classes == 2:  # which perceptrons are inverted for in a way of their own
        torch.manual_seed(0)
        own["client"], data = MLP(sizes=(FEATURES, 16, 2)), of_two_classes()
    elif record_after is not None:
        torch.manual_seed(0)
        own["client"], replayed_steps.LEAST_SECONDS = MLP(sizes=(FEATURES, 16, CLASSES)), record_after
        rule = quick(batch_size=32, max_steps=2)
    federation = tiny_federation(aggregator=rule, **own)
    trainer = fit(
        federation,
        data,
        rounds=rounds,
        devices=world,
        callbacks=[LastCheckpoint(), BackdoorMetrics()],
        enable_checkpointing=True,
        default_root_dir=folder,
        ckpt_path="last" if resume else None,
    )
    kept = {number: row.tolist() for number, row in federation.clients.memory.rows.items()}
    return weights_sha256(federation.client), {k: v.item() for k, v in trainer.callback_metrics.items()}, kept


def of_two_classes() -> FederatedDataModule:
    train, test = (TensorSamples(of.inputs, of.targets.clamp(max=1)) for of in (tiny_tensors(207), tiny_tensors(50, seed=1)))
    return FederatedDataModule.from_datasets(train, test, partition=IID(num_clients=9), num_classes=2, eval_batch_size=8)


def together(results: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The results of all ranks, which must agree but for what clients keep."""
    assert all(result[:2] == results[0][:2] for result in results)
    return *results[0][:2], {number: row for *_, kept in results for number, row in kept.items()}


@pytest.mark.slow
def test_same_bits_on_any_number_of_ranks_and_after_a_resume_on_others(tmp_path) -> None:
    whole = {world: together(on_ranks(world, run, str(tmp_path / str(world)), 2, world, False)) for world in (1, 2, 3)}
    assert whole[1] == whole[2] == whole[3]
    digest, metrics, kept = whole[1]
    assert metrics["client/stamped"] > 0.05
    assert len(kept) <= 7  # of 9 clients the malicious ones never harden
    assert all(row[-1] == CLASSES for row in kept.values())
    for first, then in ((2, 3),):
        folder = str(tmp_path / f"{first} then {then}")
        on_ranks(first, run, folder, 1, first, False)
        assert together(on_ranks(then, run, folder, 2, then, True)) == (digest, metrics, kept), (first, then)


@pytest.mark.slow
def test_recorded_inversions_change_no_bit_on_any_number_of_ranks_and_after_a_resume(tmp_path) -> None:
    expected = together(on_ranks(1, run, str(tmp_path / "plain"), 2, 1, False, math.inf))
    assert expected[1]["client/stamped"] > 0.05
    assert together(on_ranks(3, run, str(tmp_path / "recorded"), 2, 3, False, 0.0)) == expected
    folder = str(tmp_path / "resumed")
    on_ranks(2, run, folder, 1, 2, False, 0.0)
    assert together(on_ranks(3, run, folder, 2, 3, True, math.inf)) == expected


@pytest.mark.slow
def test_perceptrons_of_two_classes_end_with_the_same_bits_on_any_number_of_ranks_and_after_a_resume(tmp_path) -> None:
    whole = {world: together(on_ranks(world, run, str(tmp_path / str(world)), 2, world, False, None, 2)) for world in (1, 2, 3)}
    assert whole[1] == whole[2] == whole[3]
    assert whole[1][1]["client/stamped"] > 0.05
    folder = str(tmp_path / "resumed")
    on_ranks(2, run, folder, 1, 2, False, None, 2)
    assert together(on_ranks(3, run, folder, 2, 3, True, None, 2)) == whole[1]
