"""Seconds of a step of FLIP's trigger inversion, in several ways, against the matrix products in it alone.

    OMP_NUM_THREADS=1 python -m benchmarks.inversion

Measured is `TriggerInversion.invert` for two triggers of the phishing table's MLP, on two halves of a batch. `written` is what
perceptrons of two classes get, `replayed` what any recordable module gets; `plain` are the same operations as the latter's from
Python, with autograd for the model; `textbook` is autograd and `torch.optim.Adam` throughout, without any
keeping of the best trigger.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import pairwise
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import alternate, emit, significant, summary
from fl_lightning.aggregators.trigger_inversion import TriggerInversion, TriggerSpace
from fl_lightning.models import MLP
from fl_lightning.modules import replayed_steps

CPU = torch.device("cpu")


class Recordable(MLP):
    """Does not say that it is a perceptron."""

    recordable = True


def textbook(model: nn.Module, space: TriggerSpace, groups: list[Tensor], start: Tensor, steps: int) -> None:
    """The two triggers, one after the other in one loss."""
    theta = torch.atanh(2 * start - 1).requires_grad_()
    adam = torch.optim.Adam([theta], lr=0.1, betas=(0.5, 0.9))
    for _ in range(steps):
        triggers = theta.tanh() / 2 + 0.5
        loss = 1e-3 * triggers[:, : space.mask_size].sum()
        for k, group in enumerate(groups):
            loss = loss + F.cross_entropy(model(space.stamp(group, triggers[k])), torch.full((len(group),), 1 - k))
        (theta.grad,) = torch.autograd.grad(loss, theta)
        adam.step()


@torch.no_grad()
def products(weights: list[Tensor], b: int, steps: int) -> None:
    """The matrix products of as many forward and backward passes."""
    inputs, slopes = torch.zeros(b, weights[0].shape[1]), torch.zeros(b, len(weights[-1]))
    for _ in range(steps):
        forward, backward = inputs, slopes
        for weight in weights:
            forward = forward @ weight.t()
        for weight in reversed(weights):
            backward = backward @ weight


def measure(b: int, steps: int, repeats: int) -> None:
    """One row."""
    sizes, draws = (45, 128, 256, 2), torch.Generator().manual_seed(0)
    perceptron, model, inversion = MLP(sizes=sizes), Recordable(sizes=sizes), TriggerInversion()
    inputs = torch.randn(b, sizes[0], generator=draws)
    space = TriggerSpace((sizes[0],), inputs.amin(0), inputs.amax(0))
    groups = list(inputs.tensor_split(2))
    start = torch.stack([inversion.fresh(space.shape, draws) for _ in groups])
    weights = [torch.randn(after, before, generator=draws) for before, after in pairwise(sizes)]

    def inverted(of: MLP, record_after: float) -> None:
        with patch.object(replayed_steps, "LEAST_SECONDS", record_after):
            inversion.invert(of, space, groups, [1, 0], start, steps=steps, cost=1e-3)

    def seconds(function: Callable[[], None]) -> Callable[[], float]:
        def run() -> float:
            began = time.process_time()
            function()
            return (time.process_time() - began) / steps

        return run

    plain = Recordable(sizes=sizes)  # a module of its own, as recordings belong to modules
    candidates = {
        "written": lambda: inverted(perceptron, 0.0),
        "replayed": lambda: inverted(model, 0.0),
        "plain": lambda: inverted(plain, float("inf")),
        "textbook": lambda: textbook(model, space, groups, start.clamp(1e-4, 1 - 1e-4), steps),
        "products": lambda: products(weights, b, steps),
    }
    found = alternate({name: seconds(function) for name, function in candidates.items()}, repeats=repeats, warm_up=2)
    least = {name: min(values) for name, values in found.items()}
    row = {"samples": b, "steps": steps, "repeats": repeats}
    row |= {f"{name}_seconds": summary(values) for name, values in found.items()}
    row |= {
        f"{name}_ratio": significant(least[name] / least["written"]) for name in ("replayed", "plain", "textbook", "products")
    }
    emit("inversion", row, CPU)


def main() -> None:
    parser = argparse.ArgumentParser(description="A step of trigger inversion, against the matrix products in it alone.")
    parser.add_argument("--samples", type=int, nargs="+", default=[128, 72])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    for b in options.samples:
        measure(b, options.steps, options.repeats)


if __name__ == "__main__":
    main()
