"""One step of trigger inversion: what is written down against autograd and torch's own Adam."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fl_lightning.aggregators.inversion_step import (
    COST_DOWN,
    COST_UP,
    Problem,
    Progress,
    adam_table,
    cost_factors,
    inversion_step,
    update_costs,
)

CPU = torch.device("cpu")


def test_the_table_makes_it_torchs_adam() -> None:
    """Each step rounds a handful of times, relative to what it moves by, which is at most the learning rate's .1 or so."""
    draws = torch.Generator().manual_seed(0)
    gradients = torch.randn(40, 7, generator=draws) * torch.logspace(-6, 1, 7)
    theta = torch.zeros(7, requires_grad=True)
    adam = torch.optim.Adam([theta], lr=0.1, betas=(0.5, 0.9))
    found, average, square = (torch.zeros(7) for _ in range(3))
    for gradient, (rate, epsilon) in zip(gradients, adam_table(40, 0.1, CPU), strict=True):
        theta.grad = gradient
        adam.step()
        average.lerp_(gradient, 0.5)
        square.mul_(0.9).addcmul_(gradient, gradient, value=0.1)
        found.addcmul_(average / (square.sqrt() + epsilon), rate)
    torch.testing.assert_close(found, theta.detach(), rtol=0, atol=40 * 8 * 0.1 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("shape", [(6,), (2, 3, 4)])
def test_a_gradient_is_autograds(shape: tuple[int, ...]) -> None:
    """The first average is half of the gradient. What is added up has b + p terms at most, and each is rounded a few times."""
    torch.manual_seed(1)
    p, m = math.prod(shape), math.prod(shape[-2:])
    net = nn.Sequential(nn.Flatten(), nn.Linear(p, 9), nn.ReLU(), nn.Linear(9, 3))
    x, theta = torch.randn(8, *shape), torch.randn(2, m + p)
    low = torch.full((shape[0], 1, 1) if len(shape) == 3 else shape, -2.0)
    width, costs, counts = torch.rand_like(low) + 1, torch.tensor([0.3, 0.01]), [3, 5]
    group_of = torch.tensor([0] * 3 + [1] * 5)
    weights = torch.tensor([1 / counts[k] for k in group_of])
    goals = torch.tensor([1] * 3 + [2] * 5)
    members = torch.block_diag(torch.ones(3), torch.ones(5))
    problem = Problem(x, goals, group_of, members, weights, torch.tensor([3.0, 5.0]), low, width, cost_factors(CPU))
    progress = Progress.begin(theta.clone(), torch.zeros(2, m + p), 1.0)
    progress.costs.copy_(costs)
    inversion_step(net, *progress, *problem, *adam_table(1, 0.1, CPU)[0], patience=10)

    net, exact = net.double(), theta.double().requires_grad_()
    triggers = (exact.tanh() + 1) / 2
    loss = torch.zeros((), dtype=torch.float64)
    for k in range(2):
        mask, unit = triggers[k, :m].view(shape[-2:]), triggers[k, m:].view(shape)
        mine = group_of == k
        logits = net((1 - mask) * x[mine].double() + mask * (low + width * unit))
        loss = loss + nn.functional.cross_entropy(logits, goals[mine]) + costs[k] * mask.sum()
    (expected,) = torch.autograd.grad(loss, exact)
    bound = 8 * (8 + p) * torch.finfo(torch.float32).eps * float(expected.abs().max())
    torch.testing.assert_close(2 * progress.average, expected.float(), rtol=0, atol=max(bound, 1e-6))
    torch.testing.assert_close(10 * progress.square, expected.square().float(), rtol=1e-3, atol=1e-9)


def slow_costs(outcomes: np.ndarray, cost: float, patience: int) -> np.ndarray:
    """(steps, K) of 0 and 1 -> the costs after each step."""
    found = np.zeros(outcomes.shape)
    for k, of_trigger in enumerate(outcomes.T):
        now, wins, losses = cost, 0, 0
        for t, won in enumerate(of_trigger):
            wins, losses = (wins + 1, 0) if won else (0, losses + 1)
            if wins == patience:
                now, wins = now * 1.5, 0
            if losses == patience:
                now, losses = now / 1.5**1.5, 0
            found[t, k] = now
    return found


@pytest.mark.parametrize("patience", [1, 3])
def test_costs_follow_their_schedule(patience: int) -> None:
    outcomes = np.random.default_rng(0).random((60, 4)) < [0.0, 0.5, 0.8, 1.0]
    costs, series = torch.full((4,), 0.01), torch.zeros(2, 4)
    expected = slow_costs(outcomes, 0.01, patience)
    for success, of_step in zip(outcomes, expected, strict=True):
        update_costs(costs, series, torch.from_numpy(success), cost_factors(CPU), patience)
        np.testing.assert_allclose(costs.numpy(), of_step, rtol=60 * torch.finfo(torch.float32).eps)
    assert (COST_UP, COST_DOWN) == (1.5, 1.5**1.5)


def test_the_smallest_mask_that_succeeded_is_kept() -> None:
    def towards(logits: Tensor) -> Tensor:
        return logits

    x = torch.tensor([[0.0, 1.0]])  # taken for class 1 as it is
    problem = Problem(
        x, torch.tensor([1]), torch.tensor([0]), torch.ones(1, 1), torch.ones(1), torch.ones(1), torch.zeros(2), torch.ones(2),
        cost_factors(CPU),
    )  # fmt: skip
    progress = Progress.begin(torch.zeros(1, 4), torch.zeros(1, 4), 100.0)
    sizes, seen = [], []
    for row in adam_table(5, 0.1, CPU):
        sizes.append(float(((progress.parameters[0, :2].tanh() + 1) / 2).sum()))
        inversion_step(towards, *progress, *problem, *row, patience=10)
        seen.append(float(progress.best_sizes))
    assert sizes == sorted(sizes, reverse=True)  # the cost is all that counts
    assert seen == pytest.approx(sizes)
    assert float(progress.best[0, :2].sum()) == pytest.approx(sizes[-1])
