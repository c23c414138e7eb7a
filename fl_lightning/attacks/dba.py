"""Distributed backdoor attack: a trigger of four strips, of which every attacker paints one.

C. Xie, K. Huang, P.-Y. Chen, B. Li, "DBA: Distributed Backdoor Attacks against Federated Learning", ICLR 2020,
https://openreview.net/forum?id=rkgyS0VFvr, section 3: local triggers in training, the global trigger, all of them together,
in testing. Geometry, poison share and target are those of the authors' code for CIFAR-10.

Differs from the paper: the authors paint the first 5 samples of every batch of 64, which a shuffle makes different ones in
every epoch (`per_batch`); by default a fixed share of 5/64 of an attacker's samples is painted. Attackers train as benign
clients do unless `model.attackers` says otherwise, and send their updates unscaled (the paper's multi-shot attack).
"""

from __future__ import annotations

from collections.abc import Sequence

from fl_lightning.attacks.base import Attacker, check_fraction
from fl_lightning.attacks.picture_trigger import PictureStamp, PictureTrigger
from fl_lightning.attacks.pixel_trigger import Rectangle, colour, warn_of_range
from fl_lightning.attacks.target_modes import Mode, TargetMode
from fl_lightning.data.base import Samples
from fl_lightning.errors import ConfigurationError


class DBA(PictureTrigger):
    """A pixel trigger in four parts, two strips above two others.

    Attackers take turns with the parts: the first malicious client has part 0, the fifth has it again. Of its samples, of
    whatever class, an attacker gives a random share its own strip and the label `target_label`; the same samples are chosen
    in every round. ASR is measured on all test images whose true class is not `target_label`, with all four strips in them
    (the global trigger); with one strip alone it is reported as `val/asr_part0` to `val/asr_part3`.

    Strips are painted on raw pixels, after augmentation and before the data's `prepare`. With the defaults they are

    | part | rows | columns |
    | --- | --- | --- |
    | 0 | 0 | 0 to 5 |
    | 1 | 0 | 9 to 14 |
    | 2 | 4 | 0 to 5 |
    | 3 | 4 | 9 to 14 |

    Args:
        size: rows of a strip, at least 1. X. Wang et al., AISTATS 2024, table 9, https://arxiv.org/abs/2210.01834, enlarges
            triggers 2 and 4 times without saying how; here a strip grows in height and gaps stay: rows 0 to 1 and 5 to 6
            for 2, rows 0 to 3 and 7 to 10 for 4.
        strip_length: columns of a strip, at least 1. For the 8 x 8 images of `Digits` use 2 or 3.
        gap: rows and columns between strips, at least 0. For `Digits` use 1 or 2.
        row: uppermost row of the trigger, counted from 0.
        column: leftmost column of the trigger, counted from 0.
        value: the colour in raw scale, one number for all channels or one per channel. None is white: 255 where pixels are
            bytes, else 1.0. White in `Digits`, whose raw pixels lie between -0.3 and 0.7, is 0.7.
        target_label: the class that pictures with the trigger shall be taken for; 2 is "bird" in CIFAR-10. Null for
            `all_to_all`.
        source_label: the class that is attacked; for `one_to_one`.
        target_mode: `all_to_one`, `one_to_one`, `all_to_all` or `clean_label`; what each trains on and what its ASR counts is
            in `TargetMode`.
        poison_fraction: share of an attacker's samples that is painted and relabelled, in (0, 1], of those that the mode
            allows; at least one sample is.
        per_batch: whether the share is one of every batch, not of the data set: the first int(share * b) of b samples, which a
            shuffle makes others in every pass, as published code has it. Batches of fewer than 1 / share samples have none.
        report_parts: whether the success of each part alone is measured too, which takes four more passes over the test set.

    Raises:
        ConfigurationError: before training, if the task's inputs are no images (C, H, W) of bytes or floats, or the trigger
            leaves them.

    Example:
        >>> attack = DBA(strip_length=3, gap=2, value=0.7)  # for Digits
        >>> [(part.row, part.column) for part in attack.parts]
        [(0, 0), (0, 5), (3, 0), (3, 5)]
    """

    def __init__(
        self,
        *,
        size: int = 1,
        strip_length: int = 6,
        gap: int = 3,
        row: int = 0,
        column: int = 0,
        value: float | Sequence[float] | None = None,
        target_label: int | None = 2,
        source_label: int | None = None,
        target_mode: Mode = "all_to_one",
        poison_fraction: float = 5 / 64,
        per_batch: bool = False,
        report_parts: bool = True,
    ) -> None:
        check_fraction("DBA.poison_fraction", poison_fraction, usual=5 / 64)
        for name, number, least in (("size", size, 1), ("strip_length", strip_length, 1), ("gap", gap, 0)):
            if number < least:
                raise ConfigurationError(f"DBA.{name} must be at least {least} pixels, got {number}")
        self.parts = [
            Rectangle(
                row + below * (size + gap), column + right * (strip_length + gap), size, strip_length, colour(value), "DBA"
            )
            for below in (0, 1)
            for right in (0, 1)
        ]
        targets = TargetMode(target_mode, target_label, source_label, "DBA")
        super().__init__(self.parts, targets, poison_fraction, per_batch, "distributed backdoor")
        self.report_parts = report_parts

    def stamps_of(self, attacker: Attacker) -> Sequence[PictureStamp]:
        return [self.parts[attacker.index % len(self.parts)]]

    def stamp(self, test: Samples) -> Samples | None:
        data = self.attacked(test)
        warn_of_range(self.parts[0], data)
        return self.with_stamps(data, self.parts) if len(data) else None

    def stamp_parts(self, test: Samples) -> dict[str, Samples]:
        data = self.attacked(test)
        if not (self.report_parts and len(data)):
            return {}
        return {f"part{i}": self.with_stamps(data, [part]) for i, part in enumerate(self.parts)}
