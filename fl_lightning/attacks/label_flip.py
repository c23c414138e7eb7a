"""Label flipping: attackers train on false labels and leave the inputs as they are.

- `pair`: V. Tolpegin, S. Truex, M. E. Gursoy, L. Liu, "Data Poisoning Attacks Against Federated Learning Systems", ESORICS
  2020, https://arxiv.org/abs/2007.08432.
- `reverse`: M. Fang, X. Cao, J. Jia, N. Z. Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning",
  USENIX Security 2020, https://arxiv.org/abs/1911.11815, section 4.1.
- `shift`: the "all-to-all" labels of T. Gu, B. Dolan-Gavitt, S. Garg, "BadNets: Identifying Vulnerabilities in the Machine
  Learning Model Supply Chain", 2017, https://arxiv.org/abs/1708.06733, here without their trigger.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fl_lightning.attacks.base import Attack, Attacker, check_fraction, check_label
from fl_lightning.attacks.poisoning import poison_share
from fl_lightning.data.base import Samples
from fl_lightning.data.outcomes import Classes, Outcome, Tokens
from fl_lightning.errors import ConfigurationError

SETTINGS = {"pair": {"source_label", "target_label"}, "all_to_one": {"target_label"}, "shift": set(), "reverse": set()}
"""Which labels each mode takes."""


class LabelFlip(Attack):
    """Poisoned labels without a trigger.

    Of the samples that the mode applies to, a malicious client relabels a random share, the same ones in every round. With C
    classes the label y becomes

    | mode | new label | applies to |
    | --- | --- | --- |
    | `pair` | `target_label` | samples of class `source_label` |
    | `all_to_one` | `target_label` | samples of any other class |
    | `shift` | (y + 1) mod C | all samples |
    | `reverse` | C - 1 - y | all samples, but for the middle class of an odd C |

    ASR is measured for `pair` alone: on the clean test samples of class `source_label` under the label `target_label`, so it
    is the share of them that is taken for the target. The other modes spoil the whole model and have no ASR; their success
    is the loss of accuracy.

    Where a class is asked for at every position (`Tokens`), each is relabelled by itself, but for padding: a sample that is
    poisoned is so at all positions that the mode applies to, and ASR is the share of the positions of class `source_label`.
    If padding is one of the numbers 0 to C - 1, `shift` and `reverse` go round the C - 1 others.

    Args:
        mode: which labels become which, see above.
        source_label: the class under attack; for `pair`.
        target_label: the class that it shall be taken for; for `pair` and `all_to_one`.
        poison_fraction: share of the samples that the mode applies to that is relabelled, in (0, 1]; at least one sample is,
            if there are any.
        per_batch: whether the share is one of every batch, not of the data set: of k such samples in a batch the first
            int(share * k), which are others after every shuffle.

    Example:
        >>> attack = LabelFlip(mode="reverse")
        >>> attack.validate(num_classes=10)
        >>> data = TensorSamples(torch.zeros(3, 1), torch.tensor([0, 1, 9]))
        >>> attack.poison(data, Attacker(client=0, seed=0, pool=data)).targets
        tensor([9, 8, 0])
    """

    outcomes = (Classes, Tokens)

    def __init__(
        self,
        *,
        mode: Literal["pair", "all_to_one", "shift", "reverse"] = "pair",
        source_label: int | None = None,
        target_label: int | None = None,
        poison_fraction: float = 1.0,
        per_batch: bool = False,
    ) -> None:
        if mode not in SETTINGS:
            raise ConfigurationError(f"LabelFlip.mode must be one of {', '.join(SETTINGS)}, got {mode!r}")
        for name, label in (("source_label", source_label), ("target_label", target_label)):
            if (label is not None) != (name in SETTINGS[mode]):
                takes = " and ".join(sorted(SETTINGS[mode])) or "neither source_label nor target_label"
                raise ConfigurationError(f"LabelFlip.{name} is {label}, but the mode {mode} takes {takes}")
        if mode == "pair" and source_label == target_label:
            raise ConfigurationError(
                f"LabelFlip.source_label and target_label are both {source_label}, so there is nothing to attack; choose two "
                "classes"
            )
        check_fraction("LabelFlip.poison_fraction", poison_fraction, usual=1.0)
        self.mode = mode
        self.source_label = source_label
        self.target_label = target_label
        self.poison_fraction = poison_fraction
        self.per_batch = per_batch
        self._num_classes: int | None = None

    def validate(self, num_classes: int) -> None:
        for name, label in (("source_label", self.source_label), ("target_label", self.target_label)):
            if label is not None:
                check_label(f"LabelFlip.{name}", label, num_classes)
        self._num_classes = num_classes

    def poison(self, dataset: Samples, attacker: Attacker) -> Samples:
        targets = dataset.targets
        false = self._false(targets, dataset.outcome)
        applies = torch.nonzero((false != targets).flatten(1).any(1) if targets.ndim > 1 else false != targets).squeeze(1)

        def write(rows: Tensor) -> Samples:
            return dataset.relabel(targets.index_copy(0, rows, false[rows]))

        return poison_share(dataset, applies, self.poison_fraction, attacker, "label flip", write, per_batch=self.per_batch)

    def stamp(self, test: Samples) -> Samples | None:
        if isinstance(test.outcome, Tokens):
            test.outcome.check_label("LabelFlip.source_label", self.source_label)
            test.outcome.check_label("LabelFlip.target_label", self.target_label)
        if self.mode != "pair":
            return None
        false = self._false(test.targets, test.outcome)
        flipped = false != test.targets
        if isinstance(test.outcome, Tokens):
            false, flipped = false.where(flipped, test.outcome.padding), flipped.any(1)  # nothing else is wanted
        source = torch.nonzero(flipped).squeeze(1)
        return test.relabel(false).subset(source) if len(source) else None

    def _false(self, targets: Tensor, outcome: Outcome) -> Tensor:
        """The new labels, of the same shape, if all were changed that the mode applies to."""
        if isinstance(outcome, Tokens):
            return self._false_tokens(targets, outcome)
        if self.target_label is not None:  # pair, all_to_one
            one_class = torch.full_like(targets, self.target_label)
            return one_class if self.source_label is None else one_class.where(targets == self.source_label, targets)
        assert self._num_classes is not None, "validate() has not run"
        return self._moved(targets, self._num_classes)

    def _moved(self, places: Tensor, num: int) -> Tensor:
        """By `shift` or `reverse`, places in [0, num)."""
        return (places + 1) % num if self.mode == "shift" else num - 1 - places

    def _false_tokens(self, targets: Tensor, outcome: Tokens) -> Tensor:
        """The same at every position; padding stays what it is, and no class becomes padding."""
        counted, padding = outcome.counted(targets), outcome.padding
        if self.target_label is not None or self._num_classes is None or not 0 <= padding < self._num_classes:
            return self._false(targets, Classes()).where(counted, targets)
        places = targets - (targets > padding).long()  # among the classes without padding
        moved = self._moved(places, self._num_classes - 1)
        return (moved + (moved >= padding)).where(counted, targets)
