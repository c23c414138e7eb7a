"""Every argument of every public class: what is no number where a number is meant is refused by its name.

The classes come from the catalogue, so that a new one is looked at as well.
"""

import inspect
import math
from collections.abc import Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np
import pytest
from tiny import TinyClient

import fl_lightning
from fl_lightning import ConfigurationError
from fl_lightning.aggregators import FedAvg, Krum
from fl_lightning.catalogue.kinds import KINDS
from fl_lightning.data import IID, RootSet, RotatedDigits

REQUIRED: dict[str, Any] = {
    "rule": FedAvg,
    "pool": RotatedDigits,
    "partition": lambda: IID(num_clients=3),
    "path": lambda: "table.csv",
    "client": TinyClient,
    "aggregator": FedAvg,
    "num_clients": lambda: 3,
    "tokenizer": lambda: "words",
    "model": lambda: {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 9, "pad_token_id": 0},
}
"""What arguments without a default are given, by name."""

OF_A_FILE = {"path": "texts.csv"}
ALWAYS: dict[str, dict[str, Any]] = {"HuggingFaceText": OF_A_FILE, "HuggingFaceInstructions": OF_A_FILE}
"""What else is always given, by class."""

TAKES_ANY_NUMBER = {("PhishingTable", "phishing_value")}
"""Arguments that are compared with what stands in a file."""

BESIDE: dict[tuple[str, str], dict[str, Any]] = {
    ("LabelFlip", name): {"source_label": 1, "target_label": 0} for name in ("poison_fraction", "per_batch")
}
"""What else is given, where an argument is not looked at, or not needed, without."""

LISTS_TOO = {("PixelTrigger", "value"), ("DBA", "value")}
"""Arguments that may be a list as well."""


def classes() -> list[type]:
    others = [fl_lightning.CohortSampler, fl_lightning.LocalTraining, fl_lightning.Federation, fl_lightning.FederatedStrategy]
    return [*(cls for kind in KINDS for cls in kind.classes()), *others, RootSet]


def numbers() -> Iterator[tuple[type, str, type]]:
    """Class, argument, and whether a whole number, a number or a truth value is meant."""
    for cls in classes():
        for name, parameter in inspect.signature(cls, eval_str=True).parameters.items():
            hint = parameter.annotation
            hints = get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint]
            kind = next((kind for kind in (bool, float, int) if kind in hints), None)
            if kind is not None and str not in hints and (cls.__name__, name) not in TAKES_ANY_NUMBER:
                yield cls, name, kind


def make(cls: type, **given: Any) -> Any:
    needed = [
        p.name for p in inspect.signature(cls).parameters.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    ]
    required = {name: REQUIRED[name]() for name in needed if name not in given}
    return cls(**{**ALWAYS.get(cls.__name__, {}), **required, **given})


def wrong(cls: type, name: str, kind: type) -> list[Any]:
    """What is no such number."""
    if kind is bool:
        return ["1", [1], "yes", 2.5, math.nan, 1]
    lists = [["1"]] if (cls.__name__, name) in LISTS_TOO else [[1]]
    return ["1", *lists, True, math.nan, math.inf, -math.inf, *([2.5] if kind is int else [])]


@pytest.mark.parametrize(
    ("cls", "name", "kind"), [pytest.param(*case, id=f"{case[0].__name__}-{case[1]}") for case in numbers()]
)
def test_what_is_no_such_number_is_refused_by_name(cls, name, kind):
    for value in wrong(cls, name, kind):
        with pytest.raises(ConfigurationError) as caught:
            make(cls, **{**BESIDE.get((cls.__name__, name), {}), name: value})
        said = str(caught.value)
        assert name in said, value
        assert "\n" not in said, value


PASSES = [(cls, name, kind) for cls, name, kind in numbers() if name.endswith(("epochs", "passes")) and kind is not bool]


def test_there_are_classes_that_take_passes_over_data():
    assert {"BackdoorIndicator", "Lockdown", "IBA", "A3FL", "F3BA", "Chameleon"} <= {cls.__name__ for cls, _, _ in PASSES}


@pytest.mark.parametrize(("cls", "name", "kind"), [pytest.param(*case, id=f"{case[0].__name__}-{case[1]}") for case in PASSES])
def test_more_passes_than_anybody_waits_for_are_refused(cls, name, kind):
    beside = BESIDE.get((cls.__name__, name), {})
    make(cls, **{**beside, name: kind(100_000)})
    for value in (100_001, 10**30):
        with pytest.raises(ConfigurationError, match=rf"{name} must be at most 100,000, got 1"):
            make(cls, **{**beside, name: kind(value)})


@pytest.mark.parametrize("cls", sorted({cls for cls, _, _ in numbers()}, key=lambda cls: cls.__name__))
def test_what_stands_there_by_default_is_taken(cls):
    make(cls, **next((beside for (name, _), beside in BESIDE.items() if name == cls.__name__), {}))


def test_numbers_of_numpy_are_taken_and_a_class_of_ones_own_looks_at_its_arguments_itself():
    of_numpy: Any = np.int64(1)
    assert Krum(num_malicious=of_numpy).num_malicious == 1

    class Mine(FedAvg):
        def __init__(self, limit: float = math.inf) -> None:
            super().__init__()
            self.limit = limit

    assert Mine().limit == math.inf
    with pytest.raises(TypeError, match="unexpected keyword"):
        FedAvg(wighted=True)  # pyrefly: ignore[unexpected-keyword]
