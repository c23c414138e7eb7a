"""Trigger inversion: the smallest change of inputs that a model takes for a given class.

B. Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P 2019, section IV, as
K. Zhang et al., "FLIP: A Provable Defense Framework for Backdoor Mitigation in Federated Learning", ICLR 2023,
https://arxiv.org/abs/2210.12873, and its published code use it.

Letters: inputs are images (b, C, H, W) or rows of a table (b, F). A trigger is a mask of m numbers and a pattern of p numbers,
all in [0, 1]: m = H W and p = C H W, or m = p = F. K triggers are inverted at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from fl_lightning.aggregators.inversion_step import Problem, Progress, adam_table, cost_factors, inversion_step
from fl_lightning.aggregators.perceptron_inversion import can_invert, invert_from_perceptron
from fl_lightning.checked import with_checked_arguments
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.outputs import class_logits
from fl_lightning.modules.perceptron import perceptron_layers
from fl_lightning.modules.replayed_steps import take_steps

EDGE = 1e-4
"""How near to 0 and 1 a start may come: the tanh must not be so flat that a step goes nowhere."""

CORNER = 5, 14
"""Rows and columns of the published start."""

GUARD = 1e-9
"""Keeps products such as .85 * 20 from landing on the wrong side of the integer that they stand for."""


@dataclass(frozen=True)
class TriggerSpace:
    """The triggers that inputs of one shape can carry: x' = (1 - M) x + M P, with a mask M and a pattern P.

    M is shared by the channels of an image. P lies between `low` and `high`, so x' does too if x does.

    Attributes:
        shape: of an input: (C, H, W) or (F,).
        low: least value per channel (C, 1, 1) or feature (F,), in units of the model's inputs.
        high: largest value.
    """

    shape: tuple[int, ...]
    low: Tensor
    high: Tensor

    @property
    def mask_size(self) -> int:
        """m."""
        return mask_size(self.shape)

    def unpack(self, triggers: Tensor) -> tuple[Tensor, Tensor]:
        """(K, m + p) -> masks (K, 1, H, W) or (K, F), and patterns (K, C, H, W) or (K, F) in units of the inputs."""
        masks, patterns = triggers.split([self.mask_size, math.prod(self.shape)], dim=1)
        patterns = torch.lerp(self.low, self.high, patterns.view(-1, *self.shape))
        return masks.view(-1, 1, *self.shape[1:]) if len(self.shape) == 3 else masks, patterns

    def stamp(self, inputs: Tensor, trigger: Tensor) -> Tensor:
        """Inputs (b, ...) with a trigger (m + p,) written into all of them."""
        (mask,), (pattern,) = self.unpack(trigger[None])
        return blend(inputs, mask, pattern)


def mask_size(shape: tuple[int, ...]) -> int:
    """m, for inputs of shape (C, H, W) or (F,)."""
    return math.prod(shape[-2:])


def blend(inputs: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """(1 - M) x + M P, in the inputs' type."""
    return torch.lerp(inputs, pattern.to(inputs.dtype), mask.to(inputs.dtype))


def input_shape(inputs: Any) -> tuple[int, ...]:
    """The shape of one of the model inputs in a batch.

    Raises:
        ConfigurationError: if they are neither images (b, C, H, W) nor rows of a table (b, F).
    """
    if isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.ndim in (2, 4):
        return tuple(inputs.shape[1:])
    found = f"{inputs.dtype} of shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs).__name__
    raise ConfigurationError(
        "FLIP inverts triggers in images (b, C, H, W) and tables (b, F) of floating-point numbers, but this task's inputs are "
        f"{found}; it is not applicable to text or to several inputs, so use another rule"
    )


def to_parameters(triggers: Tensor) -> Tensor:
    """theta with (tanh(theta) + 1) / 2 = triggers, moved inwards to [`EDGE`, 1 - `EDGE`]."""
    return torch.atanh(triggers.clamp(EDGE, 1 - EDGE) * 2 - 1)


@dataclass(frozen=True)
class Inverted:
    """What an inversion found.

    Attributes:
        triggers: (K, m + p) float32 in [0, 1].
        sizes: (K,) float32, the sum of each mask, at most m; infinite where no trigger succeeded.
    """

    triggers: Tensor
    sizes: Tensor


@with_checked_arguments
@dataclass(frozen=True)
class TriggerInversion:
    """Minimise CE(f(x'), t) + c ||M||_1 over mask and pattern, and keep the smallest mask that succeeded.

    M and P are (tanh(theta) + 1) / 2 of free parameters, which Adam changes (betas .5, .9). CE is the mean over the samples;
    f is the model in eval mode, and neither its buffers nor its gradients change. A step succeeds if at least
    ceil(`success_rate` * b) of b samples are taken for t. c follows `update_costs`.

    A step costs one forward and one backward pass over all samples, without the gradients of the weights.

    Attributes:
        warmup_steps: inversion steps for a universal trigger, at least 1.
        new_steps: for a pair of classes that was not the last one, at least 1.
        continued_steps: for the same pair again, at least 1.
        retry_steps: for the same pair again after a failure, at least 1.
        learning_rate: Adam's, more than 0.
        success_rate: share of samples to be misclassified, in (0, 1].
        cost: c at first, more than 0.
        continued_cost: c at first for the same pair again.
        patience: successes or failures on end after which c changes, at least 1.
        initial_mask: where nothing is known, a mask is drawn from U(0, .1) everywhere: `uniform`. `published` also sets rows
            0-4 x columns 0-13 of images to 1, as the published code does: exactly where the triggers of DBA, the attack that
            it is tested against, lie.

    Differs from the published code: there a mask that is the smallest yet is followed by small noise, for a pair of classes CE
    is a sum rather than a mean, and a start may come within 5e-8 of 0 and 1.
    """

    warmup_steps: int = 600
    new_steps: int = 200
    continued_steps: int = 50
    retry_steps: int = 100
    learning_rate: float = 0.1
    success_rate: float = 0.85
    cost: float = 1e-3
    continued_cost: float = 1e-2
    patience: int = 10
    initial_mask: Literal["uniform", "published"] = "uniform"

    def __post_init__(self) -> None:
        for name in ("warmup_steps", "new_steps", "continued_steps", "retry_steps", "patience"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"TriggerInversion.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "cost", "continued_cost"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(f"TriggerInversion.{name} must be more than 0 and finite, got {getattr(self, name)}")
        if not 0 < self.success_rate <= 1:
            raise ConfigurationError(f"TriggerInversion.success_rate must lie in (0, 1], got {self.success_rate}; .85 is usual")
        if self.initial_mask not in ("uniform", "published"):
            raise ConfigurationError(f"TriggerInversion.initial_mask must be uniform or published, got {self.initial_mask!r}")

    def fresh(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """(m + p,) float32 on the CPU, the start where nothing is known: a mask of little weight, a pattern from U(0, 1)."""
        m = mask_size(shape)
        trigger = torch.rand(m + math.prod(shape), generator=generator)
        trigger[:m] *= 0.1
        if self.initial_mask == "published":
            rows, columns = CORNER
            trigger[:m].view(shape[-2:])[:rows, :columns] = 1
        return trigger

    def successes_needed(self, num_samples: int) -> int:
        """How many of that many samples must be taken for the target.

        >>> TriggerInversion().successes_needed(20)
        17
        """
        return math.ceil(self.success_rate * num_samples - GUARD)

    def invert(
        self,
        module: L.LightningModule,
        space: TriggerSpace,
        groups: Sequence[Tensor],
        targets: Sequence[int],
        start: Tensor,
        *,
        steps: int,
        cost: float,
    ) -> Inverted:
        """Find K triggers, each for a group of samples of its own.

        Args:
            module: f.
            space: what triggers there are.
            groups: K tensors (b_k, ...) of model inputs, b_k >= 1.
            targets: K classes to be taken for.
            start: (K, m + p) in [0, 1].
            steps: of Adam.
            cost: c at first.
        """
        device, counts = start.device, [len(group) for group in groups]
        groups_of = [torch.full((b,), k, device=device) for k, b in enumerate(counts)]
        problem = Problem(
            inputs=torch.cat(list(groups)),
            goals=torch.cat([torch.full((b,), t, device=device) for b, t in zip(counts, targets, strict=True)]),
            group_of=torch.cat(groups_of),
            members=torch.block_diag(*[torch.ones(b, device=device) for b in counts]),
            weights=torch.cat([torch.full((b,), 1 / b, device=device) for b in counts]),
            needed=torch.tensor([float(self.successes_needed(b)) for b in counts], device=device),
            low=space.low,
            width=space.high - space.low,
            factors=cost_factors(device),
        )
        progress = Progress.begin(to_parameters(start), start, cost)
        layers = perceptron_layers(module)
        if layers is not None and can_invert(layers, problem.inputs):
            invert_from_perceptron(layers, progress, problem, steps, self.learning_rate, self.patience)
            return Inverted(progress.best, progress.best_sizes)
        step, kind = partial(inversion_step, patience=self.patience), ("inversion", self.patience)
        training = module.training
        module.eval()
        take_steps(module, logits, step, kind, [*progress, *problem], adam_table(steps, self.learning_rate, device))
        module.train(training)
        return Inverted(progress.best, progress.best_sizes)


def logits(module: nn.Module, inputs: Tensor) -> Tensor:
    """(b, C) float32."""
    return class_logits(module, inputs, "FLIP")
