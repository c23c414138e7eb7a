"""The server's step, taken back where it leaves what float32 holds.

One client of 3e38 moves a mean without a bound to 3e38 / N, and weights of that size, or an optimizer's square of it, to
infinity. No update would ever be finite again. So not only the aggregate is looked at but what the step has made of it: if a
weight or something that the optimizer remembers is not finite any more, the round is refused and all is as before it.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fl_lightning.updates.layout import Layout
from fl_lightning.updates.overflow import all_finite


class Stepper(Protocol):
    """Lightning's wrapper of the server's optimizer, by which it counts rounds."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What is wrapped."""

    def step(self) -> Any:
        """Step, and count."""


def take_step(stepper: Stepper, module: nn.Module, layout: Layout, before: Tensor, gradient: Tensor | None) -> str | None:
    """Step with an aggregate as gradient, or refuse to.

    Args:
        stepper: of the server. Without gradients its step changes nothing, but counts the round, so it is taken in any case.
        module: the global model.
        layout: of its trainable parameters.
        before: (d,) float32, what they are.
        gradient: (d,) float32, the aggregate; None where there is none.

    Returns:
        Why the round is refused, or None. A round without an aggregate is not: there is nothing to refuse.
    """
    if gradient is None or not all_finite(gradient):
        stepper.step()
        return None if gradient is None else "the aggregate is not finite"
    layout.load_gradients(module, gradient)
    earlier = copy.deepcopy(stepper.optimizer.state_dict())  # plain SGD remembers nothing
    stepper.step()
    stepper.optimizer.zero_grad()
    if not all_finite(*layout.tensors(module)):
        reason = "the server's step makes weights that are not finite"
    elif spoilt(earlier, stepper.optimizer):
        reason = "the server's optimizer would remember what is not finite"
    else:
        return None
    layout.load(module, before)
    stepper.optimizer.load_state_dict(earlier)
    return f"{reason} (the aggregate's largest entry is {float(gradient.abs().max()):.3g})"


def spoilt(earlier: dict[str, Any], optimizer: torch.optim.Optimizer) -> bool:
    """Whether a vector in an optimizer's state is not finite, but was so in an earlier state or was not there."""
    now, before = vectors(optimizer.state_dict()), vectors(earlier)
    if all_finite(*now.values()):
        return False
    return any(not all_finite(vector) and (key not in before or all_finite(before[key])) for key, vector in now.items())


def vectors(state: dict[str, Any]) -> dict[tuple[Any, str], Tensor]:
    """What an optimizer's `state_dict` holds in numbers of parameters, by parameter and name; counters are none."""
    of_parameters = state.get("state", {})
    return {
        (parameter, name): value
        for parameter, entries in of_parameters.items()
        for name, value in entries.items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim
    }
