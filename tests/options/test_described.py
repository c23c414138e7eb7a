"""Objects as the record of a run has them."""

import functools
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny import TinyClient, tiny_tensors
from torch.utils.data import TensorDataset

from fl_lightning import CohortSampler, aggregators, attacks, data
from fl_lightning.aggregators import Bucketing, Invariant, TrimmedMean
from fl_lightning.attacks import A3FL, DBA, Adaptive, EdgeCase, LabelFlip, PixelTrigger, TabularDBA, ValueTrigger
from fl_lightning.data import IID, Digits, MapSamples, RootSet, RotatedDigits
from fl_lightning.models import MLP
from fl_lightning.options.described import describe, optimizer_of


class Halves:
    """A partitioner as those of another library."""

    dataset: Any = None
    num_partitions = 2

    def load_partition(self, partition_id):
        return self.dataset.shard(2, partition_id)


NEED_ARGUMENTS = {
    "Bucketing": lambda: Bucketing(rule=TrimmedMean(alpha=0.1)),
    "NearestNeighborMixing": lambda: aggregators.NearestNeighborMixing(rule=Invariant(tau=0.3)),
    "A3FL": lambda: A3FL(target_label=1),
    "DBA": lambda: DBA(target_label=1),
    "EdgeCase": lambda: EdgeCase(pool=RotatedDigits(), target_label=7),
    "LabelFlip": lambda: LabelFlip(source_label=1, target_label=0),
    "PixelTrigger": lambda: PixelTrigger(target_label=1),
    "TabularDBA": lambda: TabularDBA(columns=[0, 1, 2, 3], values=[1.0] * 4, source_label=1, target_label=0),
    "ValueTrigger": lambda: ValueTrigger(column=5, value=4.0, source_label=1, target_label=0),
    "FullCopies": lambda: data.FullCopies(num_clients=3),
    "IID": lambda: IID(num_clients=3),
    "Digits": lambda: Digits(IID(num_clients=3), root=RootSet(samples=10)),
    "Phishing": lambda: data.Phishing(IID(num_clients=3)),
    "HuggingFaceInstructions": lambda: data.HuggingFaceInstructions(IID(num_clients=3), tokenizer="words", path="t.csv"),
    "HuggingFaceText": lambda: data.HuggingFaceText(IID(num_clients=3), tokenizer="words", path="t.csv"),
    "PhishingTable": lambda: data.PhishingTable(IID(num_clients=3), path="t.csv"),
    "CIFAR10": lambda: data.CIFAR10(IID(num_clients=3)),
    "CIFAR100": lambda: data.CIFAR100(IID(num_clients=3)),
    "TinyImageNet": lambda: data.TinyImageNet(IID(num_clients=3)),
    "FromFlower": lambda: data.FromFlower(partitioner=Halves()),
    "Twitter": lambda: data.Twitter(IID(num_clients=3)),
    "MNIST": lambda: data.MNIST(IID(num_clients=3)),
    "FashionMNIST": lambda: data.FashionMNIST(IID(num_clients=3)),
    "FEMNIST": lambda: data.FEMNIST(data.ByKey()),
    "EMNIST": lambda: data.EMNIST(IID(num_clients=3), path="emnist"),
    "Shakespeare": lambda: data.Shakespeare(data.ByKey()),
    "NextWord": lambda: data.NextWord(data.ByKey(), path="reddit"),
}
PARTS = {
    name: getattr(room, name)
    for room, base in ((aggregators, aggregators.Aggregator), (attacks, attacks.Attack), (data, data.Partition))
    for name in room.__all__
    if inspect.isclass(getattr(room, name)) and issubclass(getattr(room, name), base) and getattr(room, name) is not base
} | {
    name: getattr(data, name)
    for name in data.__all__
    if inspect.isclass(task := getattr(data, name)) and issubclass(task, data.FederatedDataModule)
    if task is not data.FederatedDataModule
}


@pytest.mark.parametrize("name", sorted(PARTS))
def test_every_argument_of_every_part_is_there(name):
    made = NEED_ARGUMENTS.get(name, PARTS[name])()
    described = describe(made)
    assert ("holds" in described) == (name in ("Adaptive", "DBA", "MaskedReplacement", "TabularDBA"))
    for parameter in inspect.signature(PARTS[name]).parameters.values():
        if isinstance(parameter.default, (bool, int, float, str)) and name not in NEED_ARGUMENTS:
            assert described["init_args"][parameter.name] == parameter.default, parameter.name
    assert yaml.safe_load(yaml.safe_dump(described)) == described


def test_parts_of_parts_and_settings_are_as_in_a_configuration():
    rule = describe(Bucketing(rule=Invariant(tau=0.3), bucket_size=4))["init_args"]
    assert (rule["bucket_size"], rule["rule"]["init_args"]["tau"]) == (4, 0.3)
    assert describe(CohortSampler(clients_per_round=7))["clients_per_round"] == 7
    assert describe(functools.partial(MLP, sizes=(4, 2)))["init_args"] == {"sizes": [4, 2]}
    assert describe(MLP)["class_path"] == "fl_lightning.models.mlp.MLP"
    assert optimizer_of(lambda parameters: torch.optim.SGD(parameters, lr=0.5))["init_args"]["lr"] == 0.5
    assert optimizer_of(lambda _: 1 / 0)["function"].endswith("<lambda>")
    assert describe([Path("a"), np.float32(0.5), None, (1, 2)]) == ["a", 0.5, None, [1, 2]]


def test_what_an_object_makes_of_its_arguments_stands_for_them():
    class Double:
        def __init__(self, *, once: int = 1, kept: int = 3) -> None:
            self.twice, self.kept, self.itself = 2 * once, kept, self

    described = describe(Double())
    assert (described["init_args"], described["holds"]["twice"]) == ({"kept": 3}, 2)
    assert describe(Double(once=2)) != described
    assert describe(TinyClient(lr=0.25))["init_args"]["lr"] == 0.25
    rules = [describe(Adaptive(rule=Invariant(tau=tau), knowledge="oracle")) for tau in (0.3, 0.4)]
    assert rules[0] != rules[1]
    assert describe(DBA(target_label=1, gap=5)) != describe(DBA(target_label=1))


def test_what_is_large_is_told_by_its_size():
    texts = [f"text {i}" for i in range(5000)]
    assert describe(texts)["items"] == 5000
    assert describe(texts) == describe(list(texts)) != describe(texts[::-1])
    assert "sha256" not in describe([object() for _ in range(5000)])

    class Texts:
        def __init__(self, number: int) -> None:
            self.texts = texts[:number]

        def __len__(self) -> int:
            return len(self.texts)

        def __getitem__(self, index: int) -> str:
            return self.texts[index]

    assert describe(Texts(5000)) == {"class_path": describe(Texts)["class_path"], "init_args": {}, "samples": 5000}


def test_data_sets_are_told_by_their_classes():
    inputs, targets = tiny_tensors(30).inputs, tiny_tensors(30).targets
    one, other = (describe(MapSamples(TensorDataset(inputs, t))) for t in (targets, targets.flip(0)))
    assert one["samples"] == 30
    assert one["init_args"]["dataset"]["class_path"].endswith("TensorDataset")
    assert one["targets"] != other["targets"]
