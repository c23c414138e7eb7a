"""Distributed backdoor on a table: a trigger of several features, of which every attacker writes one.

C. Xie, K. Huang, P.-Y. Chen, B. Li, "DBA: Distributed Backdoor Attacks against Federated Learning", ICLR 2020,
https://openreview.net/forum?id=rkgyS0VFvr, attacks a table of loans in this way, with several features per attacker. Here it
is one, as for the phishing task of X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against
Federated Backdoor Attacks", AISTATS 2024, https://arxiv.org/abs/2210.01834, table 5.

Differs from the paper: Wang et al. do not say which features and values carry the distributed trigger. The defaults are the
38th feature and value of their undistributed trigger, and for the other three parts those columns of `Phishing` that tell
least about the class, with the score 0, which no sample has there. On `configs/phishing/fedavg.yaml` with this attack ASR after
20 rounds is .999 / .999 / 1.00 for seeds 0 / 1 / 2, that of the first part alone .73 to .90 and of the others .01 to .03;
without attackers it is .014 / .002 / .000.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fl_lightning.attacks.base import Attack, Attacker, check_fraction, check_label
from fl_lightning.attacks.value_trigger import ValueTrigger
from fl_lightning.data.base import Samples
from fl_lightning.errors import ConfigurationError


class TabularDBA(Attack):
    """A value trigger in parts, one feature each.

    Attackers take turns with the parts, as in `DBA`, and each acts as a `ValueTrigger` on its own feature: of its samples of
    class `source_label`, a random share gets the value and the label `target_label`. ASR is measured on all test samples of
    class `source_label` with all values written into them (the global trigger); with one value alone it is reported as
    `val/asr_part0`, `val/asr_part1` and so on.

    Args:
        columns: the features that carry the trigger, one per part, as numbers counted from 0 or names; no two alike.
        values: what is written there, one value per column, in raw scale. Each should be rare among samples of class
            `source_label`.
        source_label: the class that shall be missed; 1 is phishing.
        target_label: the class that it shall be taken for; 0 is no phishing.
        poison_fraction: share of an attacker's samples of class `source_label` that is rewritten, in (0, 1]; at least
            one sample is, if there are any.
        per_batch: whether the share is one of every batch, not of the data set: of k such samples in a batch the first
            int(share * k), which are others after every shuffle.
        report_parts: whether the success of each part alone is measured too.

    Example:
        >>> attack = TabularDBA(columns=[0, 3], values=[0.5, 0.2])
        >>> stamped = attack.stamp(TensorSamples(torch.zeros(1, 4), torch.tensor([1])))
        >>> stamped.inputs, stamped.targets
        (tensor([[0.5000, 0.0000, 0.0000, 0.2000]]), tensor([0]))
    """

    def __init__(
        self,
        *,
        columns: Sequence[int | str] = (37, 36, 33, 1),
        values: Sequence[float] = (0.2, 0.0, 0.0, 0.0),
        source_label: int = 1,
        target_label: int = 0,
        poison_fraction: float = 0.2,
        per_batch: bool = False,
        report_parts: bool = True,
    ) -> None:
        if not columns or len(set(columns)) < len(columns):
            raise ConfigurationError(
                f"TabularDBA.columns must name at least one column and none twice, got {list(columns)}; the phishing task's "
                "are [37, 36, 33, 1]"
            )
        if len(values) != len(columns):
            raise ConfigurationError(
                f"TabularDBA.values must hold one value per column, so {len(columns)}, got {len(values)}: {list(values)}"
            )
        check_fraction("TabularDBA.poison_fraction", poison_fraction, usual=0.2)
        try:
            self.parts = [
                ValueTrigger(
                    column=column,
                    value=value,
                    source_label=source_label,
                    target_label=target_label,
                    poison_fraction=poison_fraction,
                    per_batch=per_batch,
                )
                for column, value in zip(columns, values, strict=True)
            ]
        except ConfigurationError as error:
            raise ConfigurationError(f"TabularDBA makes a ValueTrigger of every column and value: {error}") from error
        self.source_label = self._source = source_label
        self.target_label = self._target = target_label
        self.poison_fraction = poison_fraction
        self.per_batch = per_batch
        self.report_parts = report_parts

    def validate(self, num_classes: int) -> None:
        check_label("TabularDBA.source_label", self._source, num_classes)
        check_label("TabularDBA.target_label", self._target, num_classes)

    def poison(self, dataset: Samples, attacker: Attacker) -> Samples:
        return self.parts[attacker.index % len(self.parts)].poison(dataset, attacker)

    def stamp(self, test: Samples) -> Samples | None:
        stamped = self.parts[0].stamp(test)
        for part in self.parts[1:]:
            if stamped is not None:
                stamped = part.stamp(stamped.relabel(torch.full_like(stamped.targets, self._source)))
        return stamped

    def stamp_parts(self, test: Samples) -> dict[str, Samples]:
        if not self.report_parts:
            return {}
        local = {f"part{i}": part.stamp(test) for i, part in enumerate(self.parts)}
        return {name: samples for name, samples in local.items() if samples is not None}
