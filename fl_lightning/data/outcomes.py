"""What a task asks of its model for each sample, and when a prediction is what the target says.

A class (`Classes`), a class at every position of a sequence (`Tokens`), several labels at once (`MultiLabel`), or numbers
(`Regression`), the last two in `vectors.py`. Acc, ASR and what is told by class go through this one interface; which kind it is
is asked by attacks alone, which write targets, and by pictures of them.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fl_lightning.checked import whole, with_checked_arguments
from fl_lightning.data.targets import read_classes
from fl_lightning.errors import ConfigurationError
from fl_lightning.models.base import IGNORED
from fl_lightning.modules.outputs import REMEDY, is_one_logit
from fl_lightning.modules.predicting import class_probabilities, predicted_classes

if TYPE_CHECKING:
    from torchmetrics import Metric

log = logging.getLogger(__name__)

Accepts = Callable[[Tensor], Tensor]
"""A rule's say on predictions: (b, C) probabilities to (b,) bool."""


@dataclass(frozen=True)
class Judged:
    """A batch's predictions held against its targets; tensors of one shape, (b,) or (b, L).

    Attributes:
        hits: bool, whether the prediction is what the target says, and the rule lets it stand.
        counted: bool, which of them count; those of padding do not.
        undefined: bool, where the model predicts nothing, as it gives NaN or infinities.
    """

    hits: Tensor
    counted: Tensor
    undefined: Tensor


class Outcome(ABC):
    """How a task's targets look, and when a prediction is right.

    ASR is the share of hits among what is counted of the stamped test set, whose targets are what the attacker wants. So is
    Acc, of the clean test set, unless `accuracy` gives another measure.

    Attributes:
        words: what is asked for, for messages.
        one_class: whether each sample has one class, by which samples can be dealt out.
        split_at_zero: whether each entry of an output is a logit by itself, which a sigmoid would move to one side of 0.
        loses: what becomes of predictions that are none, for messages.
    """

    words: ClassVar[str]
    one_class: ClassVar[bool] = False
    split_at_zero: ClassVar[bool] = False
    loses: ClassVar[str] = "they count as wrong in Acc and as no success in ASR"

    @abstractmethod
    def read(self, targets: Any, where: str) -> Tensor:
        """n samples' targets in a data set's own form as (n, ...); raises `ConfigurationError` if some are none."""

    @abstractmethod
    def count(self, targets: Tensor) -> int:
        """How many classes, labels or numbers there are, from the training samples' targets ((n, ...))."""

    @abstractmethod
    def check(self, targets: Tensor, num_classes: int, name: str) -> None:
        """Raise `ConfigurationError` unless the targets of the `name` data are of the task's `num_classes`."""

    @abstractmethod
    def check_output(self, output: Tensor, targets: Tensor, num_classes: int, name: str) -> None:
        """Raise `ConfigurationError` unless a model's output for b samples with these targets can be judged.

        Args:
            output: (b, ...), detached or not.
            targets: (b, ...).
            num_classes: of the task.
            name: whose output it is, for messages.
        """

    @abstractmethod
    def judge(self, output: Tensor, targets: Tensor, accepts: Accepts) -> Judged:
        """Hold a model's output for b samples against their targets."""

    def accuracy(self) -> Metric | None:
        """What Acc is, fed by `for_metrics`; None where it is the share of hits."""
        return None

    def metrics(self) -> dict[str, Metric]:
        """Further measures of the clean test set, by name, fed by `for_metrics` in float64."""
        return {}

    def for_metrics(self, output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What a torchmetrics object's `update` is given: predictions and targets."""
        return output, targets

    def by_class(self, output: Tensor, targets: Tensor, hits: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """(k,) bool hits and the class (k,) int64 of each, for accuracy class by class."""
        raise ConfigurationError(f"the task asks for {self.words}, so that there is no accuracy by class")

    def check_stamped(self) -> None:  # noqa: B027  most need nothing
        """Raise `ConfigurationError` if success of an attack that stamps samples is not defined."""


class _OfLogits(Outcome):
    """What classes and tokens have in common: each prediction is the class of the largest logit."""

    def by_class(self, output: Tensor, targets: Tensor, hits: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        return hits[counted], targets[counted]


@dataclass(frozen=True)
class Classes(_OfLogits):
    """One class per sample: targets (n,) int64, logits (b, C), or (b,) or (b, 1) for two classes. Acc is the share of hits.

    Example:
        >>> judged = Classes().judge(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]), lambda p: p[:, 0] >= 0)
        >>> judged.hits
        tensor([ True, False])
    """

    words: ClassVar[str] = "one class per sample"
    one_class: ClassVar[bool] = True

    def read(self, targets: Any, where: str) -> Tensor:
        if isinstance(targets, Tensor) and targets.dtype == torch.int64 and targets.ndim == 1:
            return targets
        return read_classes(targets, where).numbers

    def count(self, targets: Tensor) -> int:
        return int(targets.max()) + 1

    def check(self, targets: Tensor, num_classes: int, name: str) -> None:
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= num_classes:
            raise ConfigurationError(
                f"the {name} data hold labels from {low} to {high}, but the task has {num_classes} classes "
                f"(0 to {num_classes - 1}); check the label column or set num_classes"
            )

    def check_output(self, output: Tensor, targets: Tensor, num_classes: int, name: str) -> None:
        count = len(targets)
        outputs = 2 if is_one_logit(output) else output.shape[1] if output.ndim == 2 else 0
        if len(output) != count or outputs < num_classes:
            raise ConfigurationError(
                f"{name} gives an output of shape {tuple(output.shape)} for {count} samples, but the task has {num_classes} "
                f"classes; it must give logits (b, C) with C >= {num_classes}" + (f": {REMEDY}" if output.ndim > 2 else "")
            )
        _check_numbers(output, count, name)
        if outputs > num_classes:
            _tell_spare(name, outputs, num_classes)

    def judge(self, output: Tensor, targets: Tensor, accepts: Accepts) -> Judged:
        accepted, classes = accepts(class_probabilities(output)), predicted_classes(output)
        return Judged((classes == targets) & accepted, torch.ones_like(targets, dtype=torch.bool), classes < 0)

    def for_metrics(self, output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return (output.reshape(-1) if is_one_logit(output) else output), targets


@with_checked_arguments
@dataclass(frozen=True)
class Tokens(_OfLogits):
    """A class at every position: targets (n, L) int64, logits (b, L, V). Acc is the share of positions that is right.

    Positions whose target is padding count for nothing, neither in Acc nor in ASR nor, with the package's networks, in the
    loss. So an attack says what it wants where: it stamps test samples with padding at all other positions. Where one class of
    a whole sample is wanted, as for an attack's source and target, it is that of the last position that counts.

    Attributes:
        padding: the target that is none.
        perplexity: whether `val/perplexity` is logged, the exponential of the mean negative log-likelihood of the positions.

    Example:
        >>> Tokens(padding=0).classes(torch.tensor([[4, 2, 0], [3, 5, 7]]))
        tensor([2, 7])
    """

    words: ClassVar[str] = "a class at every position"
    padding: int = IGNORED
    perplexity: bool = False

    def __post_init__(self) -> None:
        whole("Tokens.padding", self.padding)

    def read(self, targets: Any, where: str) -> Tensor:
        """Rows of different lengths are filled up with padding."""
        try:
            if not isinstance(targets, Tensor):
                rows = [torch.as_tensor(row) for row in targets]
                targets = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.padding)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigurationError(f"the targets in {where} are no rows of whole numbers ({error}); give (n, L)") from error
        if targets.ndim != 2 or targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
            raise ConfigurationError(
                f"the targets in {where} are {targets.dtype} of shape {tuple(targets.shape)}, but there must be a whole number "
                "at every position, (n, L)"
            )
        if not targets.numel():
            raise ConfigurationError(f"the targets in {where} have shape {tuple(targets.shape)}, so that nothing is asked for")
        return targets.long()

    def count(self, targets: Tensor) -> int:
        counted = targets[self.counted(targets)]
        return int(counted.max()) + 1 if len(counted) else 0  # which `check` refuses

    def counted(self, targets: Tensor) -> Tensor:
        """(n, L) bool, at which positions something is asked for."""
        return targets != self.padding

    def check_label(self, name: str, label: int | None) -> None:
        """Raise `ConfigurationError` if an attack's setting is padding, of which nothing is learned or measured."""
        if label == self.padding:
            raise ConfigurationError(f"{name} is {label}, which is padding in this task and no class; choose another")

    def last(self, targets: Tensor) -> Tensor:
        """(n,) int64, the last position that counts."""
        return (self.counted(targets) * torch.arange(targets.shape[1], device=targets.device)).argmax(1)

    def classes(self, targets: Tensor) -> Tensor:
        """(n,) int64, the class at the last position that counts."""
        return targets.gather(1, self.last(targets)[:, None]).squeeze(1)

    def check(self, targets: Tensor, num_classes: int, name: str) -> None:
        counted = self.counted(targets)
        if not (held := counted.any(1)).all():
            raise ConfigurationError(
                f"sample {int((~held).nonzero()[0])} of the {name} data has nothing but padding ({self.padding}) as targets; "
                "remove it"
            )
        Classes().check(targets[counted], num_classes, name)

    def check_output(self, output: Tensor, targets: Tensor, num_classes: int, name: str) -> None:
        b, length = targets.shape
        if output.ndim != 3 or output.shape[:2] != targets.shape or output.shape[2] < num_classes:
            remedy = _of_positions(output.shape, length, num_classes)
            raise ConfigurationError(
                f"{name} gives an output of shape {tuple(output.shape)} for {b} samples of {length} positions, but the task "
                f"asks for one of {num_classes} classes at every position; it must give logits (b, {length}, V) with V >= "
                f"{num_classes}{remedy}"
            )
        _check_numbers(output.flatten(0, 1), b, name)
        if output.shape[2] > num_classes:
            _tell_spare(name, output.shape[2], num_classes)

    def judge(self, output: Tensor, targets: Tensor, accepts: Accepts) -> Judged:
        counted = self.counted(targets)
        classes = predicted_classes(output.flatten(0, 1)).view_as(targets)
        return Judged((classes == targets) & counted, counted, (classes < 0) & counted)

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics.text import Perplexity

        return {"perplexity": Perplexity()} if self.perplexity else {}

    def for_metrics(self, output: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(k, V) logits and (k,) classes of the positions that count."""
        counted = self.counted(targets)
        return output[counted], targets[counted]


CLASSES = Classes()
"""What most tasks ask for."""


def _check_numbers(logits: Tensor, count: int, name: str) -> None:
    """Raise `ConfigurationError` if there is no class for some of logits (k, C) of `count` samples."""
    if (predicted_classes(logits.detach()) < 0).any():
        what = "NaN" if logits.isnan().any() else "infinite logits, among which no class is ahead,"
        raise ConfigurationError(
            f"{name} predicts {what} for the first {count} samples before any training; look for NaN and infinities in the "
            "data, or in what the module does to them"
        )


def _of_positions(shape: Sequence[int], length: int, num_classes: int) -> str:
    """What to do where a model's output is not (b, length, V)."""
    if len(shape) != 3:
        return ""
    if shape[2] == length and shape[1] >= num_classes:
        return ": give output.transpose(1, 2), as classes come last"
    if shape[1] < length and shape[2] >= num_classes:
        return f": pad all inputs to {length} positions, those of the longest row of targets, in every batch"
    return ""


def _tell_spare(name: str, outputs: int, num_classes: int) -> None:
    log.warning("%s has %d outputs, but the task has %d classes; the others are never right", name, outputs, num_classes)
