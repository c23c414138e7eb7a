"""One step of trigger inversion, as operations on tensors that are written into.

Its gradient is written down, but for the model's, so that a step is little more than the model's forward and backward pass;
and so is Adam, with a table of what it does otherwise from step to step.

Letters as in `trigger_inversion`: K triggers of m + p numbers each, b samples of all K groups together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

COST_UP, COST_DOWN = 1.5, 1.5**1.5
"""What the mask's cost is multiplied by after a series of successes, and divided by after one of failures."""

BETAS = 0.5, 0.9
"""Adam's."""

EPSILON = 1e-8
"""Adam's."""


class Problem(NamedTuple):
    """What is sought.

    Attributes:
        inputs: (b, ...) model inputs, group after group.
        goals: (b,) int64, the class that each is to be taken for.
        group_of: (b,) int64, the number of its group.
        members: (K, b) float32, 1 where a sample belongs to a group, else 0.
        weights: (b,) float32, what its cross entropy counts.
        needed: (K,) float32, how many of a group must be taken for their class.
        low: least value of a pattern per channel (C, 1, 1) or feature (F,), in units of the inputs.
        width: from there to the largest.
        factors: (2, 1), of costs after a series of successes and of failures.
    """

    inputs: Tensor
    goals: Tensor
    group_of: Tensor
    members: Tensor
    weights: Tensor
    needed: Tensor
    low: Tensor
    width: Tensor
    factors: Tensor


class Progress(NamedTuple):
    """How far it has come; steps write into these.

    Attributes:
        parameters: (K, m + p) float32, theta.
        average: (K, m + p), Adam's of the gradient.
        square: (K, m + p), Adam's of its square.
        best: (K, m + p), the triggers with the smallest masks that have succeeded.
        best_sizes: (K,), the sums of these masks; infinite where there is none.
        costs: (K,), c of each.
        series: (2, K), how many successes, and failures, there have been on end since a cost has changed.
    """

    parameters: Tensor
    average: Tensor
    square: Tensor
    best: Tensor
    best_sizes: Tensor
    costs: Tensor
    series: Tensor

    @classmethod
    def begin(cls, parameters: Tensor, triggers: Tensor, cost: float) -> Progress:
        """Before the first step, with theta and the triggers that it stands for."""
        k = len(parameters)
        return cls(
            parameters,
            torch.zeros_like(parameters),
            torch.zeros_like(parameters),
            triggers.clone(),
            parameters.new_full((k,), math.inf),
            parameters.new_full((k,), cost),
            parameters.new_zeros(2, k),
        )


@cache
def adam_numbers(steps: int, learning_rate: float) -> tuple[list[float], list[float]]:
    """For each step t = 1, 2, ... of Adam, what it moves by, and what it adds to the root of the square.

    theta - lr (average / (1 - beta1^t)) / (root(square / (1 - beta2^t)) + eps), with both parts of the fraction multiplied by
    root(1 - beta2^t).
    """
    roots = [math.sqrt(1 - BETAS[1] ** t) for t in range(1, steps + 1)]
    rates = [-learning_rate * root / (1 - BETAS[0] ** t) for t, root in enumerate(roots, 1)]
    return rates, [EPSILON * root for root in roots]


def adam_table(steps: int, learning_rate: float, device: torch.device) -> list[list[Tensor]]:
    """The same numbers as tensors (), two for each step."""
    table = torch.tensor(list(zip(*adam_numbers(steps, learning_rate), strict=True)), device=device)
    return [list(row.unbind()) for row in table.unbind()]


def inversion_step(model: Callable[[Tensor], Tensor], *tensors: Tensor, patience: int) -> None:
    """Go one step on.

    Args:
        model: (b, ...) inputs to (b, C) logits.
        tensors: of `Progress`, of `Problem`, and a row of `adam_table`.
        patience: as of `TriggerInversion`.
    """
    parts, rate, epsilon = tensors[:-2], *tensors[-2:]
    progress, problem = Progress(*parts[: len(Progress._fields)]), Problem(*parts[len(Progress._fields) :])
    inputs, k = problem.inputs, len(progress.parameters)
    shape, p = inputs.shape[1:], inputs[0].numel()
    m = progress.parameters.shape[1] - p

    tanh = torch.tanh(progress.parameters)
    triggers = tanh * 0.5 + 0.5
    masks, patterns = triggers.split([m, p], dim=1)
    sizes = masks.sum(1)
    masks = masks.view(k, 1, *shape[1:]) if len(shape) == 3 else masks
    patterns = torch.addcmul(problem.low, patterns.view(k, *shape), problem.width)
    way = patterns.to(inputs.dtype).index_select(0, problem.group_of) - inputs
    stamped = torch.addcmul(inputs, masks.to(inputs.dtype).index_select(0, problem.group_of), way)

    with torch.enable_grad():
        stamped = stamped.requires_grad_()
        logits = model(stamped)
        errors = F.cross_entropy(logits, problem.goals, reduction="none")
        (slopes,) = torch.autograd.grad(errors, stamped, problem.weights)
    # Stamped inputs are x + M (P - x), so a mask's slope is that along P - x, and a pattern's is M times theirs.
    of_masks = problem.members @ (way * slopes).flatten(1).float()
    of_patterns = problem.members @ slopes.flatten(1).float()
    if len(shape) == 3:  # channels share a mask
        of_masks = of_masks.view(k, shape[0], m).sum(1)
    of_patterns = masks * of_patterns.view(k, *shape) * problem.width
    gradient = torch.cat([of_masks + progress.costs[:, None], of_patterns.flatten(1)], dim=1)
    gradient = torch.ops.aten.tanh_backward(gradient * 0.5, tanh)

    matched = (logits.detach().argmax(1) == problem.goals).float()
    success = problem.members @ matched >= problem.needed
    better = success & (sizes < progress.best_sizes)
    progress.best.copy_(torch.where(better[:, None], triggers, progress.best))
    progress.best_sizes.copy_(torch.where(better, sizes, progress.best_sizes))
    update_costs(progress.costs, progress.series, success, problem.factors, patience)

    progress.average.lerp_(gradient, 1 - BETAS[0])
    progress.square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    progress.parameters.addcmul_(progress.average / (progress.square.sqrt() + epsilon), rate)


def cost_factors(device: torch.device) -> Tensor:
    """`Problem.factors`."""
    return torch.tensor([[COST_UP], [1 / COST_DOWN]], device=device)


def update_costs(costs: Tensor, series: Tensor, success: Tensor, factors: Tensor, patience: int) -> None:
    """Count a step: costs rise after `patience` successes on end and fall after as many failures, and a series starts anew.

    Args:
        costs: (K,) float32, changed in place.
        series: (2, K) float32, likewise.
        success: (K,) bool.
        factors: (2, 1).
        patience: at least 1.
    """
    series.add_(1).mul_(torch.stack([success, ~success]))
    full = series >= patience
    costs.mul_(torch.where(full, factors, torch.ones_like(factors)).prod(0))
    series.mul_(~full)
