"""What must hold on a GPU: the CPU's bits where arithmetic is elementwise, and the same bits from run to run."""

import json
from typing import Any

import pytest
import torch
from tiny import Relabel, tiny_data, tiny_federation, tiny_trainer

from fl_lightning import AggregationDiagnostics, BackdoorMetrics, FederatedDataModule, LocalTraining, RunRecord
from fl_lightning.aggregators import (
    AndMask,
    Bulyan,
    FedAvg,
    Invariant,
    MeanVarianceRatio,
    Median,
    SignSGD,
    TrimmedMean,
)
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.data import Dirichlet, TensorSamples
from fl_lightning.models import ResNet18
from fl_lightning.updates import UpdateShard

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

RULES = [
    FedAvg(),
    Median(),
    TrimmedMean(alpha=0.25),
    AndMask(tau=0.2),
    Invariant(tau=0.2, alpha=0.25),
    MeanVarianceRatio(),
    SignSGD(),
    Bulyan(num_malicious=4),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_rules_give_the_cpus_bits(rule):
    updates = torch.randn(20, 100_003, generator=torch.Generator().manual_seed(0))
    weights = torch.arange(1.0, 21.0)
    expected = rule(updates, weights)
    assert torch.equal(rule(updates.cuda(), weights.cuda()).cpu(), expected)
    compiled = UpdateShard.from_updates(updates.cuda(), weights.cuda())
    compiled.compiled = True
    assert torch.equal(rule(compiled).cpu(), expected)


def test_finite_rows_and_sums_on_the_device():
    updates = torch.randn(5, 3000, generator=torch.Generator().manual_seed(0))
    updates[3, 2999] = torch.nan
    updates[1, 0] = torch.inf
    shard = UpdateShard.from_updates(updates.cuda())
    assert shard.finite_rows().tolist() == [True, False, True, False, True]
    clean = torch.randn(5, 3000, generator=torch.Generator().manual_seed(1))
    gram = UpdateShard.from_updates(clean.cuda()).gram().cpu()
    torch.testing.assert_close(gram, clean.double() @ clean.double().T)


def run(precision: Any) -> tuple[str, dict[str, float]]:
    trainer = tiny_trainer(3, accelerator="gpu", deterministic=True, callbacks=[BackdoorMetrics(), AggregationDiagnostics()])
    federation = tiny_federation(local=LocalTraining(batch_size=8, precision=precision))
    trainer.fit(federation, tiny_data())
    assert next(federation.client.parameters()).dtype == torch.float32
    return weights_sha256(federation.client), {k: float(v) for k, v in trainer.callback_metrics.items()}


@pytest.fixture
def images():
    draws = torch.Generator().manual_seed(0)
    train = TensorSamples(torch.randn(300, 3, 32, 32, generator=draws), torch.randint(10, (300,), generator=draws))
    partition = Dirichlet(num_clients=9, alpha=1.0, min_samples=5)
    return FederatedDataModule.from_datasets(train, train, partition=partition, num_classes=10)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_graphs_and_branches_train_a_resnet_to_the_same_bits(monkeypatch, images, stem, channels_last):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    def trained(executor: Any, branches: int) -> str:
        torch.manual_seed(0)
        client = ResNet18(width=8, stem=stem, channels_last=channels_last)
        local = LocalTraining(batch_size=8, executor=executor, branches=branches)
        federation = tiny_federation(client=client, local=local, attacks=[Relabel()])
        tiny_trainer(5, accelerator="gpu", deterministic=True).fit(federation, images)
        assert federation.clients.way == {"sequential": "sequential", "graph": f"graph, {branches or 8} side by side"}[executor]
        return weights_sha256(federation.client)

    expected = trained("sequential", 0)
    assert trained("graph", 0) == expected
    assert trained("graph", 3) == expected


def test_where_libraries_add_in_any_order_steps_are_recorded_all_the_same(images):
    torch.manual_seed(0)
    client = ResNet18(width=8, stem="imagenet", channels_last=True)
    federation = tiny_federation(client=client, local=LocalTraining(batch_size=8, executor="graph"), attacks=[Relabel()])
    tiny_trainer(2, accelerator="gpu", deterministic=False).fit(federation, images)
    assert federation.clients.way == "graph, 8 side by side"


def test_a_run_leaves_a_record(tmp_path):
    trainer = tiny_trainer(2, accelerator="gpu", callbacks=[BackdoorMetrics(), RunRecord({})], default_root_dir=tmp_path)
    trainer.fit(tiny_federation(), tiny_data())
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["finished"]
    assert record["hardware"]["device"] == "cuda"


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_same_bits_from_run_to_run(monkeypatch, precision):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    assert run(precision) == run(precision)
