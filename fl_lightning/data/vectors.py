"""Tasks that ask for several labels or for numbers: targets that are vectors, and outputs compared entry by entry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fl_lightning.checked import real
from fl_lightning.data.outcomes import Accepts, Judged, Outcome
from fl_lightning.errors import ConfigurationError

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclass(frozen=True)
class MultiLabel(Outcome):
    """Any number of C labels per sample: targets (n, C) of 0 and 1, logits (b, C) that are split at 0. Acc is exact match.

    A sample counts as right if all of its labels are.

    Example:
        >>> judged = MultiLabel().judge(torch.tensor([[2.0, -1.0], [2.0, 1.0]]), torch.tensor([[1, 0], [1, 0]]), len)
        >>> judged.hits
        tensor([ True, False])
    """

    words: ClassVar[str] = "several labels per sample"
    split_at_zero: ClassVar[bool] = True

    def read(self, targets: Any, where: str) -> Tensor:
        values = _as_tensor(targets, where)
        if values.ndim != 2 or not bool(((values == 0) | (values == 1)).all()):
            raise ConfigurationError(
                f"the targets in {where} must be rows of 0 and 1, one entry per label, (n, C); got shape {tuple(values.shape)}"
                + ("" if values.ndim != 2 else " with other numbers")
            )
        return values.long()

    def count(self, targets: Tensor) -> int:
        return targets.shape[1]

    def check(self, targets: Tensor, num_classes: int, name: str) -> None:
        if targets.shape[1] != num_classes:
            raise ConfigurationError(
                f"the {name} data state {targets.shape[1]} labels per sample, but the task has {num_classes}; state all of them"
            )

    def check_output(self, output: Tensor, targets: Tensor, num_classes: int, name: str) -> None:
        if output.shape != targets.shape:
            raise ConfigurationError(
                f"{name} gives an output of shape {tuple(output.shape)} for {len(targets)} samples, but the task has "
                f"{num_classes} labels; it must give a logit for each, (b, {num_classes})"
            )
        _check_finite(output, name)

    def judge(self, output: Tensor, targets: Tensor, accepts: Accepts) -> Judged:
        undefined = output.isnan().any(1)
        hits = ((output > 0) == targets.bool()).all(1) & ~undefined
        return Judged(hits, torch.ones_like(hits), undefined)

    def by_class(self, output: Tensor, targets: Tensor, hits: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Each label of each sample by itself."""
        right = ((output > 0) == targets.bool()) & ~output.isnan()
        return right.flatten(), torch.arange(targets.shape[1], device=targets.device).repeat(len(targets))


@dataclass(frozen=True)
class Regression(Outcome):
    """Numbers: targets (n,) or (n, m) float32, outputs (b,), (b, 1) or (b, m). Acc is R2, the share of variance explained.

    R2 is 1 less the mean squared error by the variance of the targets, the mean over the m numbers; at most 1, and 0 for a
    model that always gives the mean. Success of an attack is an output within `tolerance` of the attacker's value.

    Attributes:
        tolerance: in the targets' unit, more than 0; None where no attack stamps samples.

    Example:
        >>> judged = Regression(tolerance=0.5).judge(torch.tensor([1.2, 3.0]), torch.tensor([1.0, 1.0]), len)
        >>> judged.hits
        tensor([ True, False])
    """

    words: ClassVar[str] = "numbers"
    loses: ClassVar[str] = "Acc is not defined for them, and they are no success in ASR"
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.tolerance is not None and not 0 < real("Regression.tolerance", self.tolerance) < math.inf:
            raise ConfigurationError(f"Regression.tolerance must be more than 0 and finite, got {self.tolerance}")

    def read(self, targets: Any, where: str) -> Tensor:
        values = _as_tensor(targets, where)
        if values.ndim not in (1, 2) or values.is_complex() or not bool(values.isfinite().all()):
            wrong = f"shape {tuple(values.shape)}" if values.ndim not in (1, 2) else "some that are not finite or not real"
            raise ConfigurationError(f"the targets in {where} must be finite real numbers, (n,) or (n, m); got {wrong}")
        return values.float()

    def count(self, targets: Tensor) -> int:
        return 1 if targets.ndim == 1 else targets.shape[1]

    def check(self, targets: Tensor, num_classes: int, name: str) -> None:
        if self.count(targets) != num_classes or len(targets) < 2:
            raise ConfigurationError(
                f"the {name} data have {len(targets)} samples of {self.count(targets)} numbers, but R2 needs two samples at "
                f"least, of the task's {num_classes} numbers each"
            )
        if name == "test" and bool((targets == targets[0]).all(0).any()):
            raise ConfigurationError(
                f"all {len(targets)} samples of the test data have the same number as target, of whose variance (0) R2 would "
                "be a share; hold out others, or leave that number out"
            )

    def check_output(self, output: Tensor, targets: Tensor, num_classes: int, name: str) -> None:
        if output.shape not in (targets.shape, (*targets.shape, 1) if targets.ndim == 1 else targets.shape):
            raise ConfigurationError(
                f"{name} gives an output of shape {tuple(output.shape)} for {len(targets)} samples, but the task asks for "
                f"{num_classes} number{'s' if num_classes > 1 else ''} each; it must give (b, {num_classes})"
            )
        _check_finite(output, name)

    def judge(self, output: Tensor, targets: Tensor, accepts: Accepts) -> Judged:
        apart = (output.reshape(targets.shape) - targets).abs().reshape(len(targets), -1)
        undefined = ~apart.isfinite().all(1)
        within = apart <= (math.inf if self.tolerance is None else self.tolerance)
        return Judged(within.all(1) & ~undefined, torch.ones_like(undefined), undefined)

    def accuracy(self) -> Metric:
        from torchmetrics import R2Score

        return R2Score()

    def for_metrics(self, output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return output.reshape(targets.shape), targets

    def check_stamped(self) -> None:
        if self.tolerance is None:
            raise ConfigurationError(
                "ASR of a task that asks for numbers needs a tolerance, within which an output counts as the attacker's value; "
                "give Regression(tolerance=...), or leave attacks with a trigger out"
            )


def _as_tensor(targets: Any, where: str) -> Tensor:
    """Numbers in any regular form."""
    try:
        if not isinstance(targets, Tensor):
            targets = torch.from_numpy(np.asarray([np.asarray(value, dtype=np.float64) for value in targets]))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"the targets in {where} are no numbers of one shape ({error}); state all alike") from error
    if targets.ndim == 2 and not targets.shape[1]:
        raise ConfigurationError(f"the targets in {where} have shape {tuple(targets.shape)}, so that nothing is asked for")
    return targets.detach()


def _check_finite(output: Tensor, name: str) -> None:
    if not output.isfinite().all():
        raise ConfigurationError(
            f"{name} gives NaN or infinities before any training; look for them in the data, or in what the module does to them"
        )
