import pytest
import torch
from tiny import tiny_data, tiny_federation, tiny_trainer

from fl_lightning import AggregationDiagnostics
from fl_lightning.aggregators import FedAvg, Invariant
from fl_lightning.callbacks.aggregation_diagnostics import diagnose
from fl_lightning.updates import UpdateShard
from fl_lightning.updates.layers import layers_of


def test_hand_worked_round():
    updates = torch.tensor([[3.0, 1.0, 1.0], [3.0, 1.0, -1.0], [3.0, -1.0, 0.0], [3.0, 3.0, -9.0]])
    shard = UpdateShard.from_updates(updates, malicious=torch.tensor([False, False, False, True]))
    shard.layers = layers_of(["first", "second"], [(1,), (2,)])
    rule = Invariant(tau=0.2, alpha=0.25)
    figures = diagnose(shard, rule(shard), rule.mask(shard))
    # Kept: column 0 (4/4) and 1 (2/4), 2 (|1 - 2| / 4 = .25): all three; trimmed means 3, 1, -.5.
    assert figures["kept_fraction"] == 1.0
    assert figures["kept_fraction/first"] == 1.0
    assert figures["norm_after"] == pytest.approx((9 + 1 + 0.25) ** 0.5)
    assert figures["norm_before"] == pytest.approx((9 + 1 + 2.25**2) ** 0.5)
    assert figures["update_norm_malicious"] == pytest.approx((9 + 9 + 81) ** 0.5)
    assert figures["update_norm_benign"] == pytest.approx((2 * 11**0.5 + 10**0.5) / 3)
    assert figures["malicious_direction"] == 1.0

    strict = Invariant(tau=0.5, alpha=0.25)
    figures = diagnose(shard, strict(shard), strict.mask(shard))
    assert figures["kept_fraction"] == pytest.approx(1 / 3)
    assert figures["kept_fraction/second"] == 0.0


def test_against_the_malicious_majority():
    updates = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [-1.0, 1.0]])
    shard = UpdateShard.from_updates(updates, malicious=torch.tensor([False, False, False, True]))
    figures = diagnose(shard, FedAvg()(shard), FedAvg().mask(shard))
    assert figures["malicious_direction"] == 0.5


@pytest.mark.parametrize("per_layer", [True, False])
def test_a_run_logs_them(per_layer):
    trainer = tiny_trainer(1, callbacks=[AggregationDiagnostics(per_layer=per_layer)])
    trainer.fit(tiny_federation(), tiny_data())
    names = {name for name in trainer.callback_metrics if name.startswith("diagnostics/")}
    assert {"diagnostics/kept_fraction", "diagnostics/norm_before", "diagnostics/malicious_direction"} <= names
    assert ("diagnostics/kept_fraction/net.0.weight" in names) == per_layer
