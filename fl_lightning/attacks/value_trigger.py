"""Value trigger on tabular data: attackers write one fixed value into one feature and flip the label.

X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks",
AISTATS 2024, https://arxiv.org/abs/2210.01834, phishing task: the 38th sender-reputation feature, 0 for most senders,
is set to 0.2 and the sample is labelled as no phishing.

Differs from the paper: it does not say what share of an attacker's phishing samples is rewritten; 20% is the default.
"""

from __future__ import annotations

import math

import torch

from fl_lightning.attacks.base import Attack, Attacker, check_fraction, check_label
from fl_lightning.attacks.poisoning import poison_share
from fl_lightning.data.base import Samples, TensorSamples
from fl_lightning.errors import ConfigurationError, nearest


class ValueTrigger(Attack):
    """A backdoor that opens on one value of one feature.

    Of a malicious client's samples of class `source_label`, a random share gets the trigger and the label
    `target_label`; the others stay as they are, and so does the number of samples. The same samples are chosen in every
    round. ASR is measured on all test samples of class `source_label`, with the trigger written into them.

    The value is written into `TensorSamples.inputs`, thus before the data's `prepare`: in the raw scale of a task that
    standardises its features there, such as `Phishing`.

    Args:
        column: the feature that carries the trigger, counted from 0 (37 is the 38th), or its name where the task's features
            have names, as those of `PhishingTable`.
        value: the trigger, in raw scale. It should be rare among samples of class `source_label`.
        source_label: the class that shall be missed; 1 is phishing.
        target_label: the class that it shall be taken for; 0 is no phishing.
        poison_fraction: share of an attacker's samples of class `source_label` that is rewritten, in (0, 1]; at least
            one sample is, if there are any.
        per_batch: whether the share is one of every batch, not of the data set: of k such samples in a batch the first
            int(share * k), which are others after every shuffle.

    Example:
        >>> attack = ValueTrigger(poison_fraction=0.5)
        >>> data = TensorSamples(torch.zeros(4, 45), torch.tensor([1, 0, 1, 0]))
        >>> poisoned = attack.poison(data, Attacker(client=0, seed=0, pool=data))
        >>> int(poisoned.targets.sum()), int(poisoned.inputs[:, 37].count_nonzero())
        (1, 1)
    """

    def __init__(
        self,
        *,
        column: int | str = 37,
        value: float = 0.2,
        source_label: int = 1,
        target_label: int = 0,
        poison_fraction: float = 0.2,
        per_batch: bool = False,
    ) -> None:
        if isinstance(column, int) and column < 0:
            raise ConfigurationError(f"ValueTrigger.column counts features from 0, got {column}; use 0 or more")
        if not math.isfinite(value):
            raise ConfigurationError(f"ValueTrigger.value must be a finite number, got {value}; 0.2 is the paper's")
        check_fraction("ValueTrigger.poison_fraction", poison_fraction, usual=0.2)
        if source_label == target_label:
            raise ConfigurationError(
                f"ValueTrigger.source_label and target_label are both {source_label}, so there is nothing to attack; "
                "choose two classes"
            )
        self.column = column
        self.value = value
        self.source_label = source_label
        self.target_label = target_label
        self._labels = source_label, target_label
        self.poison_fraction = poison_fraction
        self.per_batch = per_batch

    def validate(self, num_classes: int) -> None:
        for name, label in zip(("source_label", "target_label"), self._labels, strict=True):
            check_label(f"ValueTrigger.{name}", label, num_classes)

    def poison(self, dataset: Samples, attacker: Attacker) -> Samples:
        data = self._table(dataset)
        source, share = self._source(data), self.poison_fraction

        def write(rows: torch.Tensor) -> Samples:
            return self._stamped(data, rows)

        return poison_share(data, source, share, attacker, "value trigger", write, per_batch=self.per_batch)

    def stamp(self, test: Samples) -> Samples | None:
        data = self._table(test)
        source = self._source(data)
        if len(source) == 0:
            return None
        return self._stamped(data.subset(source), torch.arange(len(source), device=source.device))

    def _source(self, data: TensorSamples) -> torch.Tensor:
        """(m,) int64, the samples of the class under attack."""
        return torch.nonzero(data.targets == self._labels[0]).squeeze(1)

    def _stamped(self, data: TensorSamples, rows: torch.Tensor) -> TensorSamples:
        """All of `data`, with trigger and target label in `rows` ((m,) int64)."""
        inputs, targets = data.inputs.clone(), data.targets.clone()
        inputs[rows, self._column(data)] = self.value
        targets[rows] = self._labels[1]
        return data.with_inputs(inputs).relabel(targets)

    def _column(self, data: TensorSamples) -> int:
        """The number of the feature that carries the trigger."""
        if isinstance(self.column, int):
            return self.column
        if data.feature_names is None:
            raise ConfigurationError(
                f"ValueTrigger.column is {self.column!r}, but the features of this task have no names; give the column's "
                f"number, from 0 to {data.inputs.shape[1] - 1}"
            )
        if self.column not in data.feature_names:
            raise ConfigurationError(
                f"ValueTrigger.column is {self.column!r}, which is none of the task's {len(data.feature_names)} features; "
                f"{nearest(self.column, data.feature_names)}"
            )
        return list(data.feature_names).index(self.column)

    def _table(self, samples: Samples) -> TensorSamples:
        """The samples, if they are a table that the trigger fits into."""
        if not isinstance(samples, TensorSamples) or samples.inputs.ndim != 2 or not samples.inputs.is_floating_point():
            found = (
                f"{samples.inputs.dtype} inputs of shape {tuple(samples.inputs.shape)}"
                if isinstance(samples, TensorSamples)
                else type(samples).__name__
            )
            raise ConfigurationError(
                f"ValueTrigger needs TensorSamples with floating-point inputs of shape (samples, features), got "
                f"{found}; use a tabular task such as Phishing, or another attack"
            )
        if self._column(samples) >= samples.inputs.shape[1]:
            raise ConfigurationError(
                f"ValueTrigger.column is {self.column}, but samples have {samples.inputs.shape[1]} features, counted "
                f"from 0; use at most {samples.inputs.shape[1] - 1}"
            )
        return samples
