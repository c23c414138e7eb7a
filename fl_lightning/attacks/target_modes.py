"""What a trigger shall make of which class, what attackers train it on, and which test samples count for its success."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fl_lightning.attacks.base import check_label
from fl_lightning.errors import ConfigurationError

Mode = Literal["all_to_one", "one_to_one", "all_to_all", "clean_label"]

LABELS: dict[str, set[str]] = {
    "all_to_one": {"target_label"},
    "one_to_one": {"source_label", "target_label"},
    "all_to_all": set(),
    "clean_label": {"target_label"},
}
"""Which labels each mode takes."""


@dataclass
class TargetMode:
    """The aim of a trigger, with T the target label, S the source label and C classes.

    | mode | samples that attackers may stamp | their label y becomes | ASR is measured on |
    | --- | --- | --- | --- |
    | `all_to_one` | all | T | stamped test samples with y != T |
    | `one_to_one` | y = S | T | those with y = S |
    | `all_to_all` | all | (y + 1) mod C | all of them, y + 1 mod C being success |
    | `clean_label` | y = T | T, as it was | those with y != T |

    Under `all_to_all` a model that ignores the trigger has as ASR the rate at which it takes a class for the next, not 0.

    Differs from published code: FLPoison's all-to-all is y -> C - 1 - y, which leaves the middle class of an odd C alone, and
    its all-to-one ASR counts samples of class T too, which gives a clean model about 1/C. BackFed's one-to-one also stamps
    samples of class T in training.

    Args:
        mode: see above. The first three are of T. Gu, B. Dolan-Gavitt, S. Garg, "BadNets", 2017, https://arxiv.org/abs/1708.06733,
            the last of M. Barni, K. Kallas, B. Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label
            Poisoning", ICIP 2019, https://arxiv.org/abs/1902.11237.
        target_label: T; none for `all_to_all`. A text stands for a class whose number is known later.
        source_label: S; for `one_to_one` alone, and not T.
        name: the attack, for messages.

    Raises:
        ConfigurationError: unless exactly the labels that the mode takes are given.

    Example:
        >>> aim = TargetMode("all_to_all", None, None, "PixelTrigger")
        >>> aim.check(num_classes=3)
        >>> aim.wanted(torch.tensor([0, 1, 2, 2]))
        tensor([1, 2, 0, 0])
    """

    mode: Mode
    target_label: int | str | None
    source_label: int | None
    name: str
    num_classes: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigurationError(f"{self.name}.target_mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}")
        for field in ("target_label", "source_label"):
            label, takes = getattr(self, field), LABELS[self.mode]
            if (label is not None) != (field in takes):
                raise ConfigurationError(
                    f"{self.name}.{field} is {'null' if label is None else label}, but target_mode {self.mode} takes "
                    + (" and ".join(sorted(takes)) or "neither source_label nor target_label; set both to null")
                )
        if self.mode == "one_to_one" and self.source_label == self.target_label:
            raise ConfigurationError(
                f"{self.name}.source_label and target_label are both {self.source_label}, so there is nothing to attack; "
                "choose two classes"
            )

    def check(self, num_classes: int) -> None:
        """Raise `ConfigurationError` unless the labels are classes of the task."""
        for field in sorted(LABELS[self.mode]):
            if not isinstance(label := getattr(self, field), str):
                check_label(f"{self.name}.{field}", label, num_classes)
        self.num_classes = num_classes

    def wanted(self, targets: Tensor) -> Tensor:
        """(n,) int64 true classes -> (n,) int64, what stamped samples of them shall be taken for."""
        if self.target_label is not None:
            assert isinstance(self.target_label, int), "the number of the class is not known yet"
            return torch.full_like(targets, self.target_label)
        assert self.num_classes is not None, "check() has not run"
        return (targets + 1) % self.num_classes

    def poisonable(self, targets: Tensor) -> Tensor:
        """(m,) int64, which samples attackers may stamp in training."""
        if self.mode in ("all_to_one", "all_to_all"):
            return torch.arange(len(targets), device=targets.device)
        return of_class(targets, self.source_label if self.mode == "one_to_one" else self.target_label)

    def attacked(self, targets: Tensor) -> Tensor:
        """(m,) int64, on which test samples, once stamped, ASR is measured."""
        if self.mode == "all_to_all":
            return torch.arange(len(targets), device=targets.device)
        if self.mode == "one_to_one":
            return of_class(targets, self.source_label)
        return of_class(targets, self.target_label, others=True)


def of_class(targets: Tensor, label: int | str | None, *, others: bool = False) -> Tensor:
    """(m,) int64, the samples of a class, or all others."""
    assert isinstance(label, int)  # as the mode takes it
    return torch.nonzero(targets.ne(label) if others else targets.eq(label)).squeeze(1)
