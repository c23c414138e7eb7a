"""Two functions of one name are told apart by what they are set to."""

import enum
import functools
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fl_lightning import Federation
from fl_lightning.options.described import describe
from fl_lightning.options.function_settings import settings_of

RATE = 0.5
OPTIONS = {"hidden": 64, "rounds": 20}
HELD = SimpleNamespace(hidden=64, rounds=20)


class Kind(enum.Enum):
    ONE = 1
    TWO = 2


def settings(function: Any) -> dict[str, Any]:
    return settings_of(function, describe)


def test_a_lambda_is_told_by_its_text_however_it_is_laid_out():
    one, other = (lambda x: x * 2), (lambda x: x * 3)  # on one line
    assert (settings(one), settings(other)) == ({"text": "lambda x: x * 2"}, {"text": "lambda x: x * 3"})
    # fmt: off
    broken = lambda x: (  # noqa: E731
        x *
        2)
    # fmt: on
    assert settings(broken) == settings(one)


def test_what_is_taken_from_around_is_told():
    def made(hidden, rate=0.1):
        def inner(x, factor=3):
            return x * hidden * factor, lambda: RATE

        return inner, lambda: hidden

    inner, short = made(64)
    assert settings(inner) == {"uses": {"RATE": 0.5, "hidden": 64, "factor": 3}}
    assert settings(short) == {"text": "lambda: hidden", "uses": {"hidden": 64}}
    assert settings(made)["uses"]["rate"] == 0.1
    assert describe(made(64)[0]) != describe(made(32)[0])


def test_of_settings_that_are_held_together_those_that_are_named_count():
    assert settings(lambda: OPTIONS["hidden"])["uses"] == {"OPTIONS": {"hidden": 64}}
    assert settings(lambda: HELD.hidden)["uses"] == {"HELD": {"hidden": 64}}
    assert settings(lambda: dict(**OPTIONS))["uses"] == {"OPTIONS": OPTIONS}


def test_functions_of_libraries_are_told_by_their_names():
    for function in (nn.functional.relu, torch.relu, print, functools.reduce, describe, settings_of):
        assert settings(function) == {}
        assert describe(function) == {"function": f"{function.__module__}.{function.__qualname__}"}


def test_a_lambda_without_a_source_is_told_by_what_is_in_it():
    one, other, same = (eval(f"lambda p: p * {rate}") for rate in (0.1, 0.2, 0.1))
    assert settings(one) == settings(same) != settings(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (functools.partial(lambda h: h * 2, 3), functools.partial(lambda h: h * 4, 3)),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))),
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
        (Kind.ONE, Kind.TWO),
        (b"one", b"two"),
        (2j, 3j),
        (SimpleNamespace(loss=lambda x: x), SimpleNamespace(loss=lambda x: -x)),
    ],
    ids=range(7),
)
def test_what_is_not_the_same_is_not_described_alike(one, other):
    assert describe(one) != describe(other)


def test_sets_are_in_one_order():
    assert describe({"b", "a", "c"}) == ["a", "b", "c"]


def test_functions_of_the_package_are_told_by_their_names():
    default = inspect.signature(Federation).parameters["server_optimizer"].default
    assert default.__module__ == "fl_lightning.federation"
    assert settings_of(default, str) == {}
