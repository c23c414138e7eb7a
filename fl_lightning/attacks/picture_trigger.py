"""Triggers on pictures: who stamps which samples under which label, whatever the stamp is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

from fl_lightning.attacks.base import Attack, Attacker
from fl_lightning.attacks.poisoning import poison_share
from fl_lightning.attacks.target_modes import TargetMode
from fl_lightning.data.base import Samples, Stamp, TensorSamples
from fl_lightning.data.pictures import has_channels_last
from fl_lightning.errors import ConfigurationError

LOOKED_AT = 256
"""Pictures whose range of values is looked at, where they are read one by one."""


class PictureStamp(Protocol):
    """A `Stamp` for pictures (b, C, H, W), bytes or floats, that knows which ones it fits into."""

    @property
    def name(self) -> str:
        """The attack that it belongs to, for messages."""

    def __call__(self, images: Tensor) -> Tensor:
        """(b, C, H, W) -> the same with the trigger."""

    def check(self, images: Tensor) -> None:
        """Raise `ConfigurationError` unless it fits into images (n, C, H, W)."""


class PictureTrigger(Attack):
    """Base of backdoors that open on a trigger written into pictures.

    Of those of a malicious client's samples that the target mode allows, a random share gets the trigger and the label that it
    asks for; the others stay as they are, and so does the number of samples. The same samples are chosen in every round. The
    trigger is written into raw pixels after augmentation and before the data's `prepare`.

    Args:
        stamps: the trigger, in one part or several.
        targets: which classes become which.
        poison_fraction: share of the samples that the mode allows, in (0, 1].
        per_batch: whether the share is one of every batch, see `poisoning.poison_share`.
        purpose: what the draw of poisoned samples is called.
    """

    def __init__(
        self, stamps: Sequence[PictureStamp], targets: TargetMode, poison_fraction: float, per_batch: bool, purpose: str
    ) -> None:
        self._stamps = list(stamps)
        self._targets = targets
        assert not isinstance(targets.target_label, str)  # pictures have no vocabulary
        self.target_mode, self.target_label, self.source_label = targets.mode, targets.target_label, targets.source_label
        self.poison_fraction = poison_fraction
        self.per_batch = per_batch
        self._purpose = purpose

    def validate(self, num_classes: int) -> None:
        self._targets.check(num_classes)

    def stamps_of(self, attacker: Attacker) -> Sequence[PictureStamp]:
        """The parts of the trigger that an attacker trains on; all of them by default."""
        return self._stamps

    def poison(self, dataset: Samples, attacker: Attacker) -> Samples:
        data = images_for(self._stamps, dataset)
        able, labels = self._targets.poisonable(data.targets), self._targets.wanted(data.targets)

        def write(rows: Tensor) -> Samples:
            return painted(data, self.stamps_of(attacker), rows, labels)

        return poison_share(data, able, self.poison_fraction, attacker, self._purpose, write, per_batch=self.per_batch)

    def stamp(self, test: Samples) -> Samples | None:
        data = self.attacked(test)
        return self.with_stamps(data, self._stamps) if len(data) else None

    def attacked(self, test: Samples) -> Samples:
        """The test samples that ASR is measured on, without the trigger; there may be none."""
        data = images_for(self._stamps, test)
        return data.subset(self._targets.attacked(data.targets))

    def with_stamps(self, data: Samples, stamps: Sequence[Stamp]) -> Samples:
        """All of `data` with these stamps, under the labels that the attackers want."""
        return painted(data, stamps, torch.arange(len(data)), self._targets.wanted(data.targets))


def images_for(triggers: Sequence[PictureStamp], samples: Samples) -> Samples:
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


def painted(data: Samples, triggers: Sequence[Stamp], rows: Tensor, labels: Tensor) -> Samples:
    """All of `data`, with all triggers, and the classes `labels` ((n,) int64), in `rows` ((m,) int64)."""
    carries = torch.zeros(len(data), dtype=torch.bool)
    carries[rows.cpu()] = True
    carries = carries.to(data.targets.device)
    for trigger in triggers:
        data = data.stamped(trigger, carries)
    return data.relabel(torch.where(carries, labels, data.targets))


# ---- raw scale, for triggers in which all pixels have a part ------------------------------------------------------------


def raw_scale(attack: str, scale: Sequence[float] | None) -> tuple[float, float] | None:
    """The setting `scale` as a pair; `ConfigurationError` unless it is two finite numbers, black below white."""
    if scale is None:
        return None
    numbers = rising_pair(scale)
    if numbers is None:
        raise ConfigurationError(
            f"{attack}.scale must be the raw values of black and of white, two finite numbers, the first below the second, got "
            f"{scale!r}"
        )
    return numbers


def two_values(name: str, given: Any) -> tuple[float, float] | None:
    """A setting of the least and the greatest raw value; `ConfigurationError` unless it is two finite numbers, or None."""
    numbers = rising_pair(given)
    if given is not None and numbers is None:
        found = list(given) if isinstance(given, tuple) else given
        raise ConfigurationError(f"{name} must be two finite numbers, smaller first, got {found!r}")
    return numbers


def rising_pair(given: Any) -> tuple[float, float] | None:
    """Two finite numbers, the first below the second; None for anything else."""
    if not isinstance(given, Sequence) or len(given) != 2 or not all(isinstance(number, Real) for number in given):
        return None
    low, high = float(given[0]), float(given[1])
    return (low, high) if -math.inf < low < high < math.inf else None


def in_scale(scale: tuple[float, float] | None, images: Tensor) -> tuple[float, float]:
    """Black and white of images (b, C, H, W), where they are not given."""
    return scale or ((0.0, 1.0) if images.is_floating_point() else (0.0, 255.0))


def values_within(name: str, given: tuple[float, float] | None, images: Tensor) -> tuple[float, float]:
    """Least and greatest raw value of images (b, C, H, W); `ConfigurationError` if they are more than bytes hold."""
    low, high = in_scale(given, images)
    if not images.is_floating_point() and not (low >= 0 and high <= 255):
        raise ConfigurationError(f"{name} is {[low, high]}, but the pixels of this task are bytes; use numbers from 0 to 255")
    return low, high


def check_range(attack: str, scale: tuple[float, float] | None, images: Tensor) -> None:
    """Raise `ConfigurationError` unless images (n, C, H, W) lie within the scale, and the scale within what bytes hold."""
    low, high = values_within(f"{attack}.scale", scale, images)
    slack = 1e-6 * (high - low)  # .7 is no float32
    if len(images) and not (float(images.min()) >= low - slack and float(images.max()) <= high + slack):
        raise ConfigurationError(
            f"{attack}.scale is {[low, high]}, but a picture's raw pixels lie between {float(images.min()):.3g} and "
            f"{float(images.max()):.3g}; give the task's raw values of black and white, as [-0.3, 0.7] for Digits"
        )
