import pytest
import torch
from rule_oracles import aggregated
from tiny import TinyClient, fit, tiny_federation

from fl_lightning.aggregators import FedAvg
from fl_lightning.callbacks.digests import weights_sha256

TWO_ATTACKERS_OF_SEVEN = [0.30, 0.20, 0.10, -0.15, -0.20, -1.00, -1.20]


def test_by_hand() -> None:
    columns = [[1.0, 4.0], [0.0, 3.0]]
    assert aggregated(FedAvg(), columns, [2.0, 1.0]) == [2, 1]
    assert aggregated(FedAvg(), columns) == [2.5, 1.5]


def test_mean_follows_the_attackers() -> None:
    assert aggregated(FedAvg(), [TWO_ATTACKERS_OF_SEVEN]) == pytest.approx([-0.278571], abs=1e-6)


def test_without_weighted_sample_counts_do_not_matter() -> None:
    columns = [[1.0, 4.0], [0.0, 3.0]]
    assert aggregated(FedAvg(weighted=False), columns, [2.0, 1.0]) == [2.5, 1.5]
    assert aggregated(FedAvg(weighted=True), columns, [2.0, 1.0]) == [2, 1]


def test_only_the_ratio_of_sample_counts_matters() -> None:
    updates = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    one, thousand = (FedAvg()(updates, scale * torch.tensor([1.0, 2.0, 5.0])) for scale in (1, 1024))
    assert torch.equal(one, thousand)


def test_one_client_is_returned_as_it_is() -> None:
    update = torch.tensor([[0.1, -1e30, 1e-45, 0.0]])
    assert torch.equal(FedAvg()(update, torch.tensor([37.0])), update[0])


def test_a_client_without_samples_does_not_count() -> None:
    assert aggregated(FedAvg(), [[1.0, 1e30, 3.0]], [1.0, 0.0, 1.0]) == [2]


def test_shares_are_those_of_the_clients_that_are_left() -> None:
    assert aggregated(FedAvg(), [[1.0, float("nan"), 4.0]], [2.0, 100.0, 1.0]) == [2]


def test_a_subclass_has_its_forward_for_updates_alone():
    """Buffers have no submitted models to look at, and nobody is judged by them."""

    class Looking(FedAvg):
        judges = True

        def examine(self, module, probe, generator):
            return torch.ones(1)

        def forward(self, shard):
            assert shard.examined is not None
            shard.judge(shard.examined[:, 0])
            return super().forward(shard)

    digests = []
    for rule in (FedAvg(), Looking()):
        torch.manual_seed(0)
        federation = tiny_federation(client=TinyClient(norm=True), aggregator=rule)
        fit(federation, rounds=2)
        digests.append(weights_sha256(federation.client))
    assert digests[0] == digests[1]
