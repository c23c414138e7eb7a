"""More clients than can be: more than samples, clients without one, a round of more than there are."""

import pytest
import torch
from torch.utils.data import TensorDataset

from fl_lightning import CohortSampler, FederatedDataModule, Simulation, data
from fl_lightning.aggregators import FedAvg
from fl_lightning.data import IID
from fl_lightning.data.partition import CountedPartition
from fl_lightning.errors import ConfigurationError
from fl_lightning.models import MLP

N = 50
COUNTED = [
    name
    for name in data.__all__
    if isinstance(found := getattr(data, name), type) and issubclass(found, CountedPartition) and name != "FullCopies"
]


def dealt(partition: object) -> FederatedDataModule:
    train = TensorDataset(torch.zeros(N, 3), torch.arange(N) % 5)
    keys = torch.arange(N) % 7
    made = FederatedDataModule.from_datasets(train, train, partition=partition, keys=keys)  # pyrefly: ignore
    made.setup("fit")
    return made


@pytest.mark.parametrize("num_clients", [N + 1, 10_000_000])
@pytest.mark.parametrize("name", COUNTED)
def test_more_clients_than_samples_are_refused_in_a_line(name, num_clients):
    with pytest.raises(
        ConfigurationError, match=rf"{num_clients}.*{N} training samples|{N} training samples.*{num_clients}"
    ) as said:
        dealt(getattr(data, name)(num_clients=num_clients))
    assert "or more data" in str(said.value)
    assert "\n" not in str(said.value)


def test_a_client_without_samples_is_refused_in_a_line():
    with pytest.raises(
        ConfigurationError, match=r"leaves 2 of 3 clients without a sample \(client 1 first\); use fewer clients"
    ):
        dealt(lambda targets, generator, keys: [torch.arange(N), torch.tensor([]), []])


@pytest.mark.parametrize("participation", ["fixed_share", "random_pool", "fixed_frequency"])
def test_a_round_of_more_clients_than_there_are_is_refused_before_training(participation, tmp_path):
    cohort = CohortSampler(clients_per_round=12, malicious_fraction=0.2, participation=participation)
    run = Simulation(
        lambda: MLP(sizes=[3, 4, 5]),
        FedAvg(),
        dealt(IID(num_clients=11)),
        cohort=cohort,
        rounds=1,
        folder=str(tmp_path / "run"),
    )
    with pytest.raises(ConfigurationError, match="clients_per_round = 12, but the data are dealt out to 11 clients; lower it"):
        run.run()
    assert not (tmp_path / "run" / "run.json").exists()
