"""Focused flips: candidates, signs and sizes of patterns, against loops over single weights."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import drawn
from torch import Tensor, nn

from fl_lightning.attacks import Broadcast
from fl_lightning.attacks.f3ba import importance
from fl_lightning.attacks.focused_flips import flipped, flipped_to_pattern, lowest, mean_difference, weight_layers
from fl_lightning.errors import ConfigurationError


def test_importance_by_hand():
    """w_t (.5, -.4, .3, -.2), w_{t-1} (.6, -.5, .1, -.2): the first two have moved towards zero."""
    module = nn.Linear(4, 1, bias=False)
    now, earlier = torch.tensor([0.5, -0.4, 0.3, -0.2]), torch.tensor([0.6, -0.5, 0.1, -0.2])
    scores = importance(module, Broadcast(weights=now, last_step=earlier - now))["weight"]
    torch.testing.assert_close(scores, torch.tensor([[-0.05, -0.04, 0.06, 0.0]]), rtol=0, atol=1e-7)
    assert lowest(scores, 0.5).tolist() == [[True, True, False, False]]


def test_importance_leaves_frozen_tensors_out():
    module = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1).requires_grad_(False), nn.Linear(1, 2, bias=False))
    scores = importance(module, Broadcast(weights=torch.arange(5.0), last_step=torch.ones(5)))
    assert {name: score.flatten().tolist() for name, score in scores.items()} == {
        "0.weight": [0.0, -1.0],
        "0.bias": [-2.0],
        "2.weight": [-3.0, -4.0],
    }


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.sampled_from([0.001, 0.02, 0.3, 0.9]))
def test_the_lowest_share(scores, share):
    order = sorted(range(len(scores)), key=lambda k: (scores[k], k))
    expected = sorted(order[: max(1, round(share * len(scores)))])
    assert torch.nonzero(lowest(torch.tensor(scores) / 7, share)).flatten().tolist() == expected


def bilinear(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """A plane at another size: pixels are areas, and what lies beyond their centres is as at the border."""
    out = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            y = max(0.0, (i + 0.5) * plane.shape[0] / height - 0.5)
            x = max(0.0, (j + 0.5) * plane.shape[1] / width - 0.5)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, plane.shape[0] - 1), min(left + 1, plane.shape[1] - 1)
            a, b = y - top, x - left
            out[i, j] = (1 - a) * ((1 - b) * plane[top, left] + b * plane[top, right]) + a * (
                (1 - b) * plane[bottom, left] + b * plane[bottom, right]
            )
    return out


def by_loops(weights: Tensor, candidates: Tensor, pattern: Tensor, groups: int) -> np.ndarray:
    found = weights.double().numpy().copy()
    per_group = weights.shape[0] // groups
    for o, of_filter in enumerate(weights.double().numpy()):
        first = (o // per_group) * weights.shape[1]
        planes = [bilinear(plane, *weights.shape[2:]) for plane in pattern[first : first + weights.shape[1]].double().numpy()]
        low, high = np.min(planes), np.max(planes)
        for index in np.ndindex(of_filter.shape):
            value = of_filter.min() + (planes[index[0]][index[1:]] - low) / (high - low) * (of_filter.max() - of_filter.min())
            if candidates[(o, *index)] and value != 0:
                found[(o, *index)] = np.sign(value) * abs(of_filter[index])
    return found


@pytest.mark.parametrize(
    ("shape", "groups", "patch"), [((4, 2, 3, 3), 1, (2, 5, 5)), ((6, 2, 3, 2), 3, (6, 2, 4)), ((2, 1, 5, 5), 1, (1, 2, 2))]
)
def test_filters_against_loops(shape, groups, patch):
    draws = torch.Generator().manual_seed(0)
    weights, pattern = torch.randn(shape, generator=draws), torch.randn(patch, generator=draws)
    candidates = torch.rand(shape, generator=draws) < 0.5
    found = flipped_to_pattern(weights, candidates, pattern, groups)
    assert torch.equal(found.abs(), weights.abs())
    assert torch.equal(found[~candidates], weights[~candidates])
    assert np.array_equal(found.double().numpy(), by_loops(weights, candidates, pattern, groups))
    assert not torch.equal(found, weights)


@pytest.mark.parametrize("pattern", [torch.zeros(1, 2, 2), torch.full((1, 3, 3), 7.0)])
def test_a_flat_pattern_flips_nothing(pattern):
    weights = drawn(3, 4).view(3, 1, 2, 2)
    assert torch.equal(flipped_to_pattern(weights, torch.ones(3, 1, 2, 2, dtype=torch.bool), pattern), weights)


def test_a_sign_of_zero_leaves_a_weight():
    found = flipped(torch.tensor([-3.0, 2.0]), torch.ones(2, dtype=torch.bool), torch.tensor([0.0, 1.0]))
    assert found.tolist() == [-3.0, 2.0]


class Net(nn.Module):
    """Layers are called in another order than they are named in, one of them twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(8, 3)
        self.idle = nn.Linear(8, 8)
        self.middle = nn.Linear(8, 8)
        self.first = nn.Conv2d(1, 2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs).relu().flatten(1)
        return self.last(self.middle(self.middle(hidden).relu()))


def test_layers_in_the_order_of_their_calls():
    assert [name for name, _ in weight_layers(Net(), torch.zeros(1, 1, 3, 3), "Mine")] == [
        "first.weight",
        "middle.weight",
        "last.weight",
    ]
    with pytest.raises(ConfigurationError, match=r"Mine needs a model whose forward calls at least two .* but Linear calls 1"):
        weight_layers(nn.Linear(2, 2), torch.zeros(1, 2), "Mine")


def test_the_mean_difference_of_inputs():
    net, draws = Net(), torch.Generator().manual_seed(0)
    stamped, clean = torch.randn(7, 1, 3, 3, generator=draws), torch.randn(7, 1, 3, 3, generator=draws)
    batches = [(stamped[:4], clean[:4]), (stamped[4:], clean[4:])]
    expected = {
        "first": (stamped - clean).double().mean(0),
        "middle": (net.first(stamped).relu() - net.first(clean).relu()).flatten(1).double().mean(0),
    }
    layers: dict[str, Any] = {"first": net.first, "middle": net.middle}
    for name, difference in expected.items():
        with torch.no_grad():
            found = mean_difference(net, layers[name], batches)
        torch.testing.assert_close(found.double(), difference.detach(), rtol=1e-5, atol=1e-6)
