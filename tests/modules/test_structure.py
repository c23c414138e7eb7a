"""Training that makes a module something else is noticed; what may change is left alone."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.structure import Structure


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))


def replace(net: nn.Sequential) -> None:
    net[2].weight = nn.Parameter(torch.zeros(2, 9))


def grow_buffer(net: nn.Sequential) -> None:
    net[1].running_mean = torch.zeros(9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net[0].requires_grad_(False), "requires_grad of 0.weight becomes False"),
        (lambda net: net[2].weight.requires_grad_(False), "requires_grad of 2.weight becomes False"),
        (replace, "its parameter 2.weight is new, or of another shape"),
        (lambda net: net.append(nn.Linear(2, 2)), "its parameter 3.weight is new, or of another shape"),
        (lambda net: net[0].register_parameter("scale", nn.Parameter(torch.ones(1))), "its parameter 0.scale is new"),
        (lambda net: net.register_parameter("scale", nn.Parameter(torch.ones(1))), "its parameter scale is new"),
        (lambda net: net.__delitem__(2), r"a parameter of shape \(2, 4\) is gone"),
        (lambda net: setattr(net[0], "bias", None), r"its parameter 0\.bias is gone"),
        (lambda net: net[0].__delattr__("bias"), r"its parameter 0\.bias is gone"),
        (lambda net: parametrizations.weight_norm(net[0]), r"its parameter 0\.weight is gone"),
        (grow_buffer, r"the buffer running_mean of a BatchNorm1d was of shape \(4,\), and is of shape \(9,\)"),
        (lambda net: net[0].register_buffer("mask", torch.ones(4)), "the buffer mask of a Linear was nothing, and is of shape"),
    ],
)
def test_changes_are_named(change, message):
    net = network()
    before = Structure(net)
    before.check(net)
    change(net)
    with pytest.raises(ConfigurationError, match=message):
        before.check(net)


def replace_alike(net: nn.Sequential) -> None:
    net[2].weight = nn.Parameter(torch.zeros(2, 4))


def replace_buffer(net: nn.Sequential) -> None:
    net[1].running_mean = torch.ones(4)


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net[0].weight.data.mul_(2),
        replace_buffer,
        replace_alike,
        lambda net: net[0].register_buffer("cache", torch.ones(4), persistent=False),
        lambda net: net.append(nn.ReLU()),
        lambda net: net.eval(),
    ],
)
def test_what_no_update_and_no_checkpoint_holds_may_change(change):
    net = network()
    before = Structure(net)
    change(net)
    before.check(net)


def test_frozen_from_the_start_is_no_change():
    net = network()
    net[0].requires_grad_(False)
    before = Structure(net)
    before.check(net)
    net[0].requires_grad_(True)
    with pytest.raises(ConfigurationError, match=r"requires_grad of 0\.weight becomes True"):
        before.check(net)


def test_what_may_come_is_known_from_then_on():
    net = network()
    before = Structure(net)
    net.append(nn.ReLU())
    assert not before.same()
    before.check(net)
    assert before.same()
    assert before.parts[-1] is net[-1]
