"""Trigger inversion from a perceptron of two classes: all of it written down, for TorchScript's interpreter to run.

The same steps as `inversion_step`, to rounding. There is no autograd, a step allocates little, and what two classes and ReLU
make simple is done simply:

- Two classes need the difference d = logit of class 1 - logit of class 0 alone, and the cross entropy's slope along it is that
  of a sigmoid. So the last layer is one vector v, the difference of its rows.
- The slope of v . relu(z) along the layer before is a product of zeros and ones, where z > 0, with W scaled by v, which is the
  same for all steps. What a sample counts comes in where samples are added up.
- Masks and patterns are spread over samples, and slopes added up over them, by products with the (K, b) matrix of who belongs
  to which group.

What remains are the layers' products, and small operations, which count where a batch is small. Several clients' steps in one
go would share the latter, but each client has weights of its own, and those of a few leave the cache: it would gain a tenth.

Letters as in `trigger_inversion`; inputs are rows of a table, so m = p = F.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from fl_lightning.aggregators.inversion_step import BETAS, COST_DOWN, COST_UP, Problem, Progress, adam_numbers
from fl_lightning.modules.perceptron import Dense


def can_invert(layers: list[Dense], inputs: Tensor) -> bool:
    """Whether triggers of such inputs are inverted from these layers in this way."""
    return (
        len(layers) > 1
        and len(layers[-1].bias) == 2
        and inputs.ndim == 2
        and inputs.dtype == torch.float32
        and inputs.shape[1] == layers[0].weight.shape[1]
        and all(tensor.device.type == "cpu" for tensor in (inputs, layers[0].weight))
    )


def invert_from_perceptron(
    layers: list[Dense], progress: Progress, problem: Problem, steps: int, learning_rate: float, patience: int
) -> None:
    """Go `steps` steps on, as as many calls of `inversion_step`.

    Args:
        layers: at least two, of which the last has two outputs.
        progress: written into; series must not have begun.
        problem: of inputs (b, F).
        steps: at least 1.
        learning_rate: Adam's.
        patience: as of `TriggerInversion`.
    """
    *hidden, last = layers
    way = last.weight[1] - last.weight[0]
    away = 1.0 - 2.0 * problem.goals  # d grows away from class 0
    rates, epsilons = adam_numbers(steps, learning_rate)
    # A tie is class 0's: d = 0 is not below 0, but below the least number above it.
    ties = torch.nextafter(torch.zeros(()), torch.ones(())) * (problem.goals == 0)
    with torch.no_grad(), torch.jit.optimized_execution(False):  # nothing is fused, so that the first call does what others do
        script()(
            progress.parameters,
            progress.average,
            progress.square,
            progress.best,
            progress.best_sizes,
            progress.costs,
            problem.inputs,
            problem.members,
            problem.members.t().contiguous(),
            problem.needed.tolist(),
            problem.low,
            problem.width,
            [weight.t().contiguous() for weight, _ in hidden],
            [bias for _, bias in hidden],
            [*(weight for weight, _ in hidden[:-1]), way[:, None] * hidden[-1].weight],
            way,
            away,
            away * (last.bias[1] - last.bias[0]),
            0.5 * away * problem.weights,
            ties,
            rates,
            epsilons,
            patience,
            COST_UP,
            1 / COST_DOWN,
            *BETAS,
        )


@cache
def script() -> Callable[..., None]:
    """`take` compiled, once in a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but nothing else runs steps without Python
        return torch.jit.script(take)


def take(
    theta: Tensor,
    average: Tensor,
    square: Tensor,
    best: Tensor,
    best_sizes: Tensor,
    costs: Tensor,
    inputs: Tensor,
    members: Tensor,
    groups: Tensor,
    needed: list[float],
    low: Tensor,
    width: Tensor,
    forward: list[Tensor],
    biases: list[Tensor],
    backward: list[Tensor],
    way: Tensor,
    away: Tensor,
    offset: Tensor,
    counting: Tensor,
    ties: Tensor,
    rates: list[float],
    epsilons: list[float],
    patience: int,
    up: float,
    down: float,
    beta: float,
    beta_of_square: float,
) -> None:
    """The steps.

    Args:
        theta, average, square, best, best_sizes, costs: of `Progress`.
        inputs, members, low, width: of `Problem`.
        groups: (b, K), `members` transposed.
        needed: of `Problem`.
        forward, biases: of the hidden layers, weights (in, out) and (out,).
        backward: their weights (out, in), the last one's scaled by `way`.
        way: (h,), row 1 less row 0 of the last layer's weight.
        away: (b,), 1 where class 0 is the goal, else -1.
        offset: (b,), `away` times the difference of the last layer's biases.
        counting: (b,), `away` times half of what a sample's cross entropy counts: a trigger grows half as fast as its tanh.
        ties: (b,), below what `away` times d must be.
        rates, epsilons: as `adam_numbers` gives them.
        patience: as of `TriggerInversion`.
        up, down: what costs are multiplied by after as many successes, and failures.
        beta, beta_of_square: Adam's.
    """
    k, m, b = theta.size(0), inputs.size(1), inputs.size(0)
    half, decay = torch.full_like(theta, 0.5), torch.full([], beta_of_square)
    tanh, triggers = torch.empty_like(theta), torch.empty_like(theta)
    gradient, root = torch.empty_like(theta), torch.empty_like(theta)
    masks, units, of_masks, of_patterns = triggers[:, :m], triggers[:, m:], gradient[:, :m], gradient[:, m:]
    patterns, ends = torch.empty_like(masks), torch.empty_like(masks)
    added, weighed = torch.empty_like(masks), torch.empty_like(masks)
    spread, stamped, product = torch.empty_like(inputs), torch.empty_like(inputs), torch.empty_like(inputs)
    slopes = torch.empty_like(inputs)
    scaled = torch.empty_like(members)
    difference, against, hits = torch.empty([b]), torch.empty([b]), torch.empty([b])
    sizes, counts = torch.empty([k]), torch.empty([k])
    layers = len(forward)
    units_of: list[Tensor] = []
    slopes_of: list[Tensor] = []
    for weight in forward:
        units_of.append(torch.empty([b, weight.size(1)]))
        slopes_of.append(torch.empty([b, weight.size(1)]))
    least: list[float] = best_sizes.tolist()
    won, lost = [0] * k, [0] * k
    halves = 0.5 * costs[:, None]

    for step in range(len(rates)):
        torch.tanh(theta, out=tanh)
        torch.add(half, tanh, alpha=0.5, out=triggers)
        torch.addcmul(low, units, width, out=patterns)
        torch.mul(masks, patterns, out=ends)
        torch.sum(masks, [1], out=sizes)

        # x + M P - M x
        torch.mm(groups, masks, out=spread)
        torch.addmm(inputs, groups, ends, out=stamped)
        outputs = torch.addcmul(stamped, inputs, spread, value=-1.0, out=stamped)
        for i in range(layers):
            outputs = torch.addmm(biases[i], outputs, forward[i], out=units_of[i]).relu_()
        torch.mv(outputs, way, out=difference)
        torch.addcmul(offset, difference, away, out=against)
        torch.lt(against, ties, out=hits)
        torch.mv(members, hits, out=counts)

        back = outputs.sign_()
        for i in range(layers - 1, 0, -1):
            back = torch.mm(back, backward[i], out=slopes_of[i - 1])
            torch.ops.aten.threshold_backward(back, units_of[i - 1], 0, grad_input=back)
        torch.mm(back, backward[0], out=slopes)
        torch.mul(members, torch.sigmoid(against, out=against).mul_(counting), out=scaled)
        torch.mm(scaled, slopes, out=added)
        torch.mm(scaled, torch.mul(slopes, inputs, out=product), out=weighed)
        # A mask's slope is that along P - x, a pattern's is M times that of the inputs.
        torch.addcmul(halves, patterns, added, out=of_masks).sub_(weighed)
        torch.mul(masks, added, out=of_patterns).mul_(width)
        torch.ops.aten.tanh_backward(gradient, tanh, grad_input=gradient)

        counted: list[float] = counts.tolist()
        measured: list[float] = sizes.tolist()
        for i in range(k):
            if counted[i] >= needed[i]:
                won[i] += 1
                lost[i] = 0
                if measured[i] < least[i]:
                    least[i] = measured[i]
                    best[i].copy_(triggers[i])
                if won[i] == patience:
                    halves[i].mul_(up)
                    won[i] = 0
            else:
                lost[i] += 1
                won[i] = 0
                if lost[i] == patience:
                    halves[i].mul_(down)
                    lost[i] = 0

        average.lerp_(gradient, 1.0 - beta)
        square.mul_(decay).addcmul_(gradient, gradient, value=1.0 - beta_of_square)
        theta.addcdiv_(average, torch.sqrt(square, out=root).add_(epsilons[step]), value=rates[step])
    best_sizes.copy_(torch.tensor(least))
    costs.copy_(2.0 * halves[:, 0])
