import numpy as np
import pytest
import torch

from fl_lightning.analysis.loss_landscape import curve, filter_normalised, random_direction


def test_a_curve_of_a_known_loss():
    weights, direction = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    steps = np.array([-1.0, 0.0, 0.5])
    found = curve("malicious", weights, direction, steps, lambda w: float(w.sum()), lambda w: float(w[0]))
    assert found.distance.tolist() == [-5.0, 0.0, 2.5]
    assert found.benign.tolist() == [10.0, 3.0, -0.5]
    assert found.backdoor.tolist() == [4.0, 1.0, -0.5]


def test_a_random_direction_has_the_norm_of_the_other():
    like = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    drawn = random_direction(like, torch.Generator().manual_seed(0))
    assert float(drawn.norm()) == pytest.approx(float(like.norm()), rel=1e-5)
    assert abs(float(drawn @ like / like.norm() ** 2)) < 0.1
    assert torch.equal(drawn, random_direction(like, torch.Generator().manual_seed(0)))


def test_filters_get_the_norm_of_the_weights_filters():
    shapes = [torch.Size([2, 3]), torch.Size([2])]
    weights = torch.tensor([3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 7.0, 7.0])
    direction = torch.tensor([0.0, 0.0, 2.0, 1.0, 1.0, 1.0, 5.0, 5.0])
    assert filter_normalised(direction, weights, shapes).tolist() == [0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0]
