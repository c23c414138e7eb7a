"""A user's subclasses of this package's classes that leave out what their base needs."""

import copy
import pickle
from typing import Any

import pytest
from tiny import TinyClient, fit, tiny_data, tiny_federation

from fl_lightning import Aggregator, Attack, CohortSampler, ConfigurationError, FederatedDataModule, Federation
from fl_lightning.aggregators import Bucketing, FedAvg, TrimmedMean
from fl_lightning.attacks import ALIE
from fl_lightning.data import IID, Task

NO_SUPER = r"the constructor of {} does not call super\(\).__init__\(\), by which \w+ sets \w+; call it first"


class BareFederation(Federation):
    def __init__(self) -> None:
        self.note = "mine"


class BareRule(Aggregator):
    def __init__(self) -> None:
        self.note = "mine"

    def forward(self, shard):
        return shard.mean(shard.shares)


class BareTrimmed(TrimmedMean):
    def __init__(self) -> None:
        self.note = "mine"


class BareAttack(ALIE):
    def __init__(self) -> None:
        self.note = "mine"


class BarePartition(IID):
    def __init__(self) -> None:
        self.note = "mine"


class BareData(FederatedDataModule):
    def __init__(self) -> None:
        self.note = "mine"

    def load(self) -> Task:
        raise AssertionError("never reached")


def bare(kind: Any) -> None:
    """Train with an object of such a class."""
    make: Any = kind
    if issubclass(kind, Federation):
        fit(make())
    elif issubclass(kind, Aggregator):
        fit(tiny_federation(aggregator=make()))
    elif issubclass(kind, Attack):
        fit(tiny_federation(attacks=[make()]), rounds=1)
    elif issubclass(kind, IID):
        fit(tiny_federation(), tiny_data(make()))
    else:
        fit(tiny_federation(), make())


@pytest.mark.parametrize("kind", [BareFederation, BareRule, BareTrimmed, BareAttack, BarePartition, BareData])
def test_a_constructor_that_does_not_call_its_bases_is_told(kind):
    with pytest.raises(ConfigurationError, match=NO_SUPER.format(kind.__name__)) as caught:
        bare(kind)
    assert "\n" not in str(caught.value)


class CheckedByItself(Federation):
    def check(self):  # pyrefly: ignore[bad-override]
        pass


class Blind(FedAvg):
    def check(self):  # pyrefly: ignore[bad-override]
        pass


class Idle(Attack):
    def corrupt(self, shard):  # pyrefly: ignore[bad-override]
        pass


class Keyless(IID):
    def __call__(self, targets):  # pyrefly: ignore[bad-override]
        return []


def of_own_class() -> None:
    fit(CheckedByItself(TinyClient(), FedAvg(), cohort=CohortSampler(clients_per_round=3)))


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (of_own_class, r"CheckedByItself.check must take \(data\), as that of Federation does: too many positional"),
        (
            lambda: fit(tiny_federation(aggregator=Blind())),
            r"Blind.check must take \(num_clients\), as that of",
        ),
        (
            lambda: fit(tiny_federation(aggregator=Bucketing(rule=Blind(), bucket_size=2))),
            r"Blind.check must take \(num_clients\), as that of",
        ),
        (
            lambda: fit(tiny_federation(attacks=[Idle()])),
            r"Idle.corrupt must take \(shard, knowledge\), as that of Attack does",
        ),
        (
            lambda: tiny_data(Keyless(num_clients=3)),
            r"called with \(targets, generator, keys\), but Keyless does not",
        ),
    ],
)
def test_a_method_that_takes_something_else_is_told_before_training(train, said):
    with pytest.raises(ConfigurationError, match=said):
        train()


def test_what_is_missing_otherwise_is_an_attribute_error_as_ever():
    for thing in (FedAvg(), ALIE(), IID(num_clients=3), tiny_data(), tiny_federation()):
        assert not hasattr(thing, "nothing_of_that_name")
        with pytest.raises(AttributeError) as caught:
            getattr(thing, "nothing_of_that_name")  # noqa: B009
        assert not isinstance(caught.value, ConfigurationError)
    rule = copy.deepcopy(TrimmedMean(alpha=0.3))
    assert pickle.loads(pickle.dumps(rule)).alpha == rule.alpha
    assert vars(copy.deepcopy(ALIE())).keys() == vars(ALIE()).keys()
