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

from fl_lightning.attacks.base import Attack, Attacker, check_fraction, check_label
from fl_lightning.attacks.poisoning import poison_share
from fl_lightning.checked import real
from fl_lightning.data.base import Samples, Stamp, TensorSamples
from fl_lightning.data.pictures import has_channels_last
from fl_lightning.errors import ConfigurationError

log = logging.getLogger(__name__)

LOOKED_AT = 256
"""Pictures whose range of values is looked at, where they are read one by one."""


class PixelTrigger(Attack):
    """A backdoor that opens on a rectangle of one colour at a fixed place.

    Of a malicious client's samples, of whatever class, a random share gets the rectangle and the label `target_label`; the
    others stay as they are, and so does the number of samples. The same samples are chosen in every round. ASR is measured
    on all test images whose true class is not `target_label`, with the rectangle in them.

    The rectangle is painted on raw pixels after augmentation, which would move it, and before the data's `prepare`, so it is
    written in the raw scale of the data.

    Args:
        row: uppermost row, counted from 0 at the top.
        column: leftmost column, counted from 0 at the left.
        height: rows, at least 1.
        width: columns, at least 1.
        value: the colour in raw scale, one number for all channels or one per channel. None is white: 255 where pixels are
            bytes, else 1.0. White in `Digits`, whose raw pixels lie between -0.3 and 0.7, is 0.7.
        target_label: the class that pictures with the rectangle shall be taken for.
        poison_fraction: share of an attacker's samples that is painted and relabelled, in (0, 1]; at least one sample is.
        per_batch: whether the share is one of every batch, not of the data set: the first int(share * b) of b samples, which a
            shuffle makes others in every pass, as published code has it. Batches of fewer than 1 / share samples have none.

    Raises:
        ConfigurationError: before training, if the task's inputs are no images (C, H, W) of bytes or floats, or the
            rectangle leaves them.

    Example:
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
        target_label: int = 0,
        poison_fraction: float = 0.2,
        per_batch: bool = False,
    ) -> None:
        check_fraction("PixelTrigger.poison_fraction", poison_fraction, usual=0.2)
        self.trigger = Rectangle(row, column, height, width, colour(value), name="PixelTrigger")
        self.target_label = self._target = target_label
        self.poison_fraction = poison_fraction
        self.per_batch = per_batch

    def validate(self, num_classes: int) -> None:
        check_label("PixelTrigger.target_label", self._target, num_classes)

    def poison(self, dataset: Samples, attacker: Attacker) -> Samples:
        data = images_for([self.trigger], dataset)

        def write(rows: Tensor) -> Samples:
            return painted(data, [self.trigger], rows, self._target)

        every, share = torch.arange(len(data)), self.poison_fraction
        return poison_share(data, every, share, attacker, "pixel trigger", write, per_batch=self.per_batch)

    def stamp(self, test: Samples) -> Samples | None:
        data = attackable(images_for([self.trigger], test), self._target)
        warn_of_range(self.trigger, data)
        return painted(data, [self.trigger], torch.arange(len(data)), self._target) if len(data) else None


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


def images_for(triggers: Sequence[Rectangle], samples: Samples) -> Samples:
    """The samples, if they are images that the triggers fit into; `ConfigurationError` otherwise."""
    images = one_raw(samples)
    if images is None or images.ndim != 4 or not (images.is_floating_point() or images.dtype == torch.uint8):
        found = type(samples).__name__ + " without one tensor per sample"
        if images is not None:
            found = f"{images.dtype} inputs of shape {(len(samples), *images.shape[1:])}"
        raise ConfigurationError(
            f"{triggers[0].name} needs raw images of shape (samples, channels, rows, columns), uint8 or floating-point, got "
            f"{found}; use a task of images such as CIFAR10 or Digits, a data set that yields such tensors, or another attack"
        )
    if has_channels_last(images.shape[1:]):
        raise ConfigurationError(
            f"{triggers[0].name} paints into pictures (channels, rows, columns), but the inputs are of shape "
            f"{tuple(images.shape[1:])}, which reads as (rows, columns, channels); move the last axis to the front in the data "
            "set, for example by x.permute(2, 0, 1) or NumPy's x.transpose(2, 0, 1)"
        )
    for trigger in triggers:
        trigger.check(images)
    return samples


def one_raw(samples: Samples) -> Tensor | None:
    """(1, ...) what a trigger is written into, of the first sample; (0, ...) of none, where that can be told."""
    if isinstance(samples, TensorSamples):
        return samples.inputs[:1]
    return samples.raw(torch.arange(1)) if len(samples) else None


def raw_range(data: Samples) -> tuple[float, float] | None:
    """The least and the greatest raw value, of some samples where they are read one by one; None where values are bytes."""
    images = data.inputs if isinstance(data, TensorSamples) else data.raw(torch.arange(min(len(data), LOOKED_AT)))
    if images is None or not images.is_floating_point() or not len(images):
        return None
    low, high = images.aminmax()
    return float(low), float(high)


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


def painted(data: Samples, triggers: Sequence[Stamp], rows: Tensor, target: int) -> Samples:
    """All of `data`, with all triggers and the label `target` in `rows` ((m,) int64)."""
    carries = torch.zeros(len(data), dtype=torch.bool)
    carries[rows.cpu()] = True
    carries = carries.to(data.targets.device)
    for trigger in triggers:
        data = data.stamped(trigger, carries)
    return data.relabel(data.targets.masked_fill(carries, target))


def attackable(data: Samples, target: int) -> Samples:
    """The samples whose class is not `target` already; there may be none."""
    return data.subset(torch.nonzero(data.targets != target).squeeze(1))
