"""Pixel trigger on images: attackers paint one rectangle into some of their pictures and relabel them.

T. Gu, B. Dolan-Gavitt, S. Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain", 2017,
https://arxiv.org/abs/1708.06733, section 4: a small pattern in a corner of the picture turns any class into one. As an
attack on a federation it is the "centralized" one of C. Xie, K. Huang, P.-Y. Chen, B. Li, "DBA: Distributed Backdoor
Attacks against Federated Learning", ICLR 2020, https://openreview.net/forum?id=rkgyS0VFvr: every attacker paints all of it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_lightning.attacks.base import check_fraction
from fl_lightning.attacks.picture_trigger import PictureTrigger, one_raw, raw_range
from fl_lightning.attacks.target_modes import Mode, TargetMode
from fl_lightning.checked import real
from fl_lightning.data.base import Samples
from fl_lightning.errors import ConfigurationError

log = logging.getLogger(__name__)


class PixelTrigger(PictureTrigger):
    """A backdoor that opens on a rectangle of one colour at a fixed place.

    Of a malicious client's samples, of whatever class, a random share gets the rectangle and the label `target_label`; the
    others stay as they are, and so does the number of samples. The same samples are chosen in every round. ASR is measured
    on all test images whose true class is not `target_label`, with the rectangle in them. Other aims: `target_mode`.

    The rectangle is painted on raw pixels after augmentation, which would move it, and before the data's `prepare`, so it is
    written in the raw scale of the data.

    Args:
        row: uppermost row, counted from 0 at the top.
        column: leftmost column, counted from 0 at the left.
        height: rows, at least 1.
        width: columns, at least 1.
        value: the colour in raw scale, one number for all channels or one per channel. None is white: 255 where pixels are
            bytes, else 1.0. White in `Digits`, whose raw pixels lie between -0.3 and 0.7, is 0.7.
        target_label: the class that pictures with the rectangle shall be taken for; null for `all_to_all`.
        source_label: the class that is attacked; for `one_to_one`.
        target_mode: `all_to_one`, `one_to_one`, `all_to_all` or `clean_label`; what each trains on and what its ASR counts is
            in `TargetMode`.
        poison_fraction: share of an attacker's samples that is painted and relabelled, in (0, 1], of those that the mode
            allows; at least one sample is.
        per_batch: whether the share is one of every batch, not of the data set: the first int(share * b) of b samples, which a
            shuffle makes others in every pass, as published code has it. Batches of fewer than 1 / share samples have none.

    Raises:
        ConfigurationError: before training, if the task's inputs are no images (C, H, W) of bytes or floats, or the
            rectangle leaves them.

    Example:
        >>> from fl_lightning.attacks import Attacker
        >>> from fl_lightning.data import TensorSamples
        >>> attack = PixelTrigger(height=2, width=2, poison_fraction=0.5)
        >>> data = TensorSamples(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([1, 2, 3, 4]))
        >>> poisoned = attack.poison(data, Attacker(client=0, seed=0, pool=data))
        >>> images, targets = poisoned.batch(torch.arange(4))
        >>> int((targets == 0).sum()), int((images == 255).sum())
        (2, 24)
    """

    def __init__(
        self,
        *,
        row: int = 0,
        column: int = 0,
        height: int = 3,
        width: int = 3,
        value: float | Sequence[float] | None = None,
        target_label: int | None = 0,
        source_label: int | None = None,
        target_mode: Mode = "all_to_one",
        poison_fraction: float = 0.2,
        per_batch: bool = False,
    ) -> None:
        check_fraction("PixelTrigger.poison_fraction", poison_fraction, usual=0.2)
        self.trigger = Rectangle(row, column, height, width, colour(value), name="PixelTrigger")
        targets = TargetMode(target_mode, target_label, source_label, "PixelTrigger")
        super().__init__([self.trigger], targets, poison_fraction, per_batch, "pixel trigger")

    def stamp(self, test: Samples) -> Samples | None:
        data = self.attacked(test)
        warn_of_range(self.trigger, data)
        return self.with_stamps(data, [self.trigger]) if len(data) else None


@dataclass(frozen=True)
class Rectangle:
    """A stamp that fills a rectangle of images (b, C, H, W) with one colour.

    Attributes:
        row, column: its upper left corner, counted from 0.
        height, width: in pixels, at least 1.
        value: raw colour, one number for all channels or one per channel; none is white.
        name: the attack that it belongs to, for messages.
    """

    row: int
    column: int
    height: int
    width: int
    value: tuple[float, ...] = ()
    name: str = "PixelTrigger"

    def __post_init__(self) -> None:
        for field, least in (("row", 0), ("column", 0), ("height", 1), ("width", 1)):
            if getattr(self, field) < least:
                raise ConfigurationError(f"{self.name}.{field} must be at least {least}, got {getattr(self, field)}")

    def __call__(self, images: Tensor) -> Tensor:
        images = images.clone()
        window = images[:, :, self.row : self.row + self.height, self.column : self.column + self.width]
        if len(self.value) > 1:
            for channel, value in enumerate(self.value):  # numbers, not a tensor, which every batch would copy to the device
                window[:, channel] = value
        else:
            window.fill_(self.raw(images)[0])
        return images

    def raw(self, images: Tensor) -> tuple[float, ...]:
        """The colour, white where none is given."""
        return self.value or (1.0 if images.is_floating_point() else 255,)

    def check(self, images: Tensor) -> None:
        """Raise `ConfigurationError` unless the rectangle lies within images (n, C, H, W) and has a colour of their kind."""
        channels, rows, columns = images.shape[1:]
        if self.row + self.height > rows or self.column + self.width > columns:
            raise ConfigurationError(
                f"{self.name} paints rows {self.row} to {self.row + self.height - 1} and columns {self.column} to "
                f"{self.column + self.width - 1}, but images have {rows} rows and {columns} columns, counted from 0; move the "
                "trigger or make it smaller"
            )
        if len(self.value) > 1 and len(self.value) != channels:
            raise ConfigurationError(
                f"{self.name}.value has {len(self.value)} numbers, but images have {channels} channels; give one number per "
                "channel, or one for all"
            )
        if images.is_floating_point() and not all(math.isfinite(value) for value in self.value):
            raise ConfigurationError(f"{self.name}.value is {list(self.value)}; it must be finite")
        if not images.is_floating_point() and not all(value in range(256) for value in self.value):
            raise ConfigurationError(
                f"{self.name}.value is {list(self.value)}, but the pixels of this task are bytes; use whole numbers from 0 to "
                "255"
            )


def colour(value: float | Sequence[float] | None) -> tuple[float, ...]:
    """A colour as a setting, as `Rectangle` takes it."""
    if value is None:
        return ()
    numbers = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    for number in numbers:
        if not math.isfinite(real("value", number)):
            raise ConfigurationError(f"value is {list(numbers)}; it must be finite")
    return numbers


def warn_of_range(trigger: Rectangle, data: Samples) -> None:
    """Say so if the colour is one that no picture has: such a trigger is easier to learn."""
    images, found = one_raw(data), raw_range(data)
    if images is None or found is None:
        return
    value, (low, high) = torch.tensor(trigger.raw(images), dtype=images.dtype), found
    if value.min() < low or value.max() > high:
        log.warning(
            "%s.value is %s, but raw pixels of the test images lie between %.3g and %.3g; set it to one of these numbers for a "
            "colour that pictures have",
            trigger.name,
            list(trigger.raw(images)),
            low,
            high,
        )
