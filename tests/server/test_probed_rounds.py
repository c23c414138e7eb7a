"""Hooks on models, in whole federations: as a plain loop has it, and with the same bits on any number of ranks."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from probing import Probing, by_hand
from ranks import on_ranks
from tiny import Scale, TinyClient, fit, tiny_data, tiny_federation

from fl_lightning import BackdoorMetrics, CohortSampler, ConfigurationError, LocalTraining
from fl_lightning.aggregators import FLARE, DeepSight, FedAvg, NearestNeighborMixing
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.data.root import RootSet
from fl_lightning.updates import exchange, gathering, pairwise_sums

# ---- a plain loop ------------------------------------------------------------------------------------------------------


def test_five_rounds_equal_a_plain_loop() -> None:
    cohort = CohortSampler(clients_per_round=5, malicious_fraction=0.3)
    rule, data = Probing(), tiny_data()
    federation = tiny_federation(
        client=TinyClient(dropout=0.0),
        aggregator=rule,
        attacks=[Scale(3.0)],
        cohort=cohort,
        local=LocalTraining(epochs=1, batch_size=1000),
    )
    start = TinyClient(dropout=0.0)
    start.load_state_dict(federation.client.state_dict())
    trainer = fit(federation, data, rounds=5, callbacks=[BackdoorMetrics()])
    model, seen, right = by_hand(start, data, cohort, 5, 3.0)
    for (of_clients, of_broadcast), (expected, expected_broadcast) in zip(rule.seen, seen, strict=True):
        for bits, values in ((of_clients, expected), (of_broadcast, expected_broadcast)):
            found = np.frombuffer(bits, dtype=np.float32).reshape(values.shape)
            assert np.abs(found - values.numpy()).max() <= 1e-6
    for (name, tensor), expected in zip(federation.client.state_dict().items(), model.state_dict().values(), strict=True):
        if tensor.is_floating_point():
            assert float((tensor - expected).abs().max()) <= 1e-6, name
    assert len({of_clients for of_clients, _ in rule.seen}) == 5
    assert float(trainer.callback_metrics["val/acc"]) == pytest.approx(right, abs=1e-9)
    assert 0.2 < right < 1


# ---- ranks and resumes -------------------------------------------------------------------------------------------------


def probing(**kwargs: Any) -> Any:
    rule = kwargs.pop("aggregator", None) or Probing()
    return tiny_federation(**{"aggregator": rule, "attacks": [Scale(3.0)], "bucket_bytes": 1, **kwargs})


def ran(
    federation: Any, world: int, rounds: int = 1, path: Any = None, data: Any = None
) -> tuple[Any, dict[str, float], list[Any]]:
    trainer = fit(federation, data, rounds=rounds, ckpt_path=path, devices=world, callbacks=[BackdoorMetrics()])
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    rule = federation.aggregator
    return weights_sha256(federation.client), metrics, getattr(getattr(rule, "rule", rule), "seen", [])


OF_THE_PACKAGE: dict[str, Any] = {
    "deep sight": lambda: DeepSight(probe_samples=5, outliers="dropped"),
    "flare": lambda: FLARE(temperature=4.0),
}
"""Rules that look at models, with settings by which not all clients count alike."""


def ran_of_the_package(name: str, world: int, rounds: int = 2, **kwargs: Any) -> tuple[Any, dict[str, float], list[Any]]:
    return ran(probing(aggregator=OF_THE_PACKAGE[name]()), world, rounds, data=tiny_data(root=RootSet(samples=10)), **kwargs)


def on_a_rank(world: int, folder: str, begun: int | None) -> dict[str, Any]:
    """Whole runs, one that was begun on another number of ranks, and a beginning for others."""
    found: dict[str, Any] = {
        "whole": ran(probing(), world, 2),
        "mixed": ran(probing(aggregator=NearestNeighborMixing(rule=Probing(), num_malicious=2)), world),
        "without clients here": ran(probing(cohort=CohortSampler(clients_per_round=1, malicious_fraction=0.0)), world),
        "nan": ran(probing(attacks=[Scale(math.nan)]), world),
    }
    found |= {name: ran_of_the_package(name, world) for name in OF_THE_PACKAGE}
    if begun is not None:
        for name in OF_THE_PACKAGE:
            assert ran_of_the_package(name, world, path=f"{folder}/{begun} {name}.ckpt") == found[name]
        resumed = ran(probing(), world, 2, path=f"{folder}/{begun}.ckpt")
        assert resumed[:2] == found["whole"][:2]
        assert resumed[2] == found["whole"][2][1:]
    trainer = fit(probing(), rounds=1, devices=world)
    trainer.save_checkpoint(f"{folder}/{world}.ckpt")
    for name, rule in OF_THE_PACKAGE.items():
        trainer = fit(probing(aggregator=rule()), tiny_data(root=RootSet(samples=10)), rounds=1, devices=world)
        trainer.save_checkpoint(f"{folder}/{world} {name}.ckpt")
    if world == 2:
        found["collectives"] = {name: collectives(rule) for name, rule in RULES.items()}
        found["differs"] = disagreement()
    return found


class Unread(Probing):
    """Could examine models, but does not look."""

    def forward(self, shard):
        return FedAvg()(shard)


RULES = {"plain": FedAvg(), "unread": Unread(), "read": Probing()}


def collectives(rule: Any) -> Counter[str]:
    """How often a rank calls each collective in a round."""
    counts: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:

        def count(module: Any, name: str) -> None:
            original = getattr(module, name)

            def counted(*args: Any, **kwargs: Any) -> Any:
                counts[name] += 1
                return original(*args, **kwargs)

            patch.setattr(module, name, counted)

        for name in ("all_to_all_single", "all_reduce", "broadcast"):
            count(dist, name)
        for module in (exchange, gathering, pairwise_sums):
            count(module, "all_gather")
        of_runs = []
        for rounds in (1, 2):
            counts.clear()
            fit(tiny_federation(aggregator=rule, attacks=[]), rounds=rounds, devices=2, limit_val_batches=0)
            of_runs.append(counts.copy())
    return of_runs[1] - of_runs[0]


class OnItsOwn(FedAvg):
    """Edits another model on each rank."""

    @torch.no_grad()
    def before_broadcast(self, module, round_number):
        next(module.parameters()).add_(dist.get_rank())


def disagreement() -> str:
    with pytest.raises(ConfigurationError) as told:
        fit(tiny_federation(aggregator=OnItsOwn()), rounds=2, devices=2, detect_anomaly=True)
    return str(told.value)


def test_same_bits_on_any_number_of_ranks_and_after_a_resume_on_another(tmp_path: Path) -> None:
    alone = on_a_rank(1, str(tmp_path), None)
    on_three = on_ranks(3, on_a_rank, 3, str(tmp_path), 1)
    on_two = on_ranks(2, on_a_rank, 2, str(tmp_path), 3)
    for found in (*on_three, *on_two):
        for name, expected in alone.items():
            assert found[name] == expected, name
    assert len({digest for digest, *_ in alone.values()}) == len(alone)
    n = 7
    for found in on_two:
        plain, unread, read = (found["collectives"][name] for name in RULES)
        # Updates, buffers and logs are exchanged; aggregates of parameters and buffers come back.
        assert {**plain, "all_reduce": 0} == {"all_to_all_single": 2, "all_gather": 3, "all_reduce": 0}  # these are Lightning's
        assert unread == plain
        # Models of parameters and buffers, two at a time; how many numbers were measured, and these.
        assert read - plain == {"all_to_all_single": 2 * math.ceil(n / 2), "all_gather": 2}
        assert found["differs"].startswith("after round 0 the ranks hold different global models: net.0.weight")
