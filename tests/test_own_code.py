import collections
import json
import pathlib
from functools import partial

import pandas as pd
import pytest
import torch

from fl_lightning.own_code import closed, is_users, names_in, slots_of


class Own:
    __slots__ = ("_b", "a")


@pytest.mark.parametrize(
    ("of", "expected"),
    [(torch.nn.Linear, False), (torch.optim.SGD, True), (json.loads, True), (Own, False), (pd.DataFrame, False)],
)
def test_packages_that_keep_nothing_are_closed(of, expected):
    assert closed(of) == expected


@pytest.mark.parametrize(
    ("module", "expected"),
    [(__name__, True), ("json", False), ("pandas", False), ("torch.nn", False), ("made_in_a_cell", True)],
)
def test_installed_modules_are_not_the_users(module, expected):
    assert is_users(module) == expected


def test_names_of_functions_inside_are_found():
    def outer():
        return [lambda n=n: pathlib.Path(str(n)) for n in range(2)]

    assert {"pathlib", "Path", "str", "range"} <= set(names_in(outer.__code__))


def test_slots_of_its_own_and_of_its_bases():
    class Later(Own):
        __slots__ = ("__dict__", "c")

    assert set(slots_of(Later)) == {"_b", "a", "c"}
    assert slots_of(collections.OrderedDict) == slots_of(partial) == ()
