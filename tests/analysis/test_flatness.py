import pytest
import torch

from fl_lightning.analysis.flatness import flatness


def test_by_hand():
    gradients = torch.tensor([[3.0, 4.0, 1.0], [3.0, -4.0, 1.0]])
    updates = torch.tensor([[1.0, 2.0, 0.0], [1.0, -1.0, 1.0]])
    found = flatness(gradients, updates, torch.tensor([0.0, 2.0, -7.0]), ["weight", "bias"], [2, 1])
    weight, bias = found.layers
    assert (weight.name, weight.size, bias.name, bias.size) == ("weight", 2, "bias", 1)
    assert (weight.benign, weight.clients, weight.malicious) == pytest.approx((3.0, 5.0, 2.0))
    assert (bias.benign, bias.malicious) == pytest.approx((1.0, 7.0))
    assert (weight.flip_rate, bias.flip_rate) == (0.25, 0.5)  # a zero has not the sign of the mean
    assert found.flips.counts == [1, 2, 0]
    assert found.flips.zeros == 1
