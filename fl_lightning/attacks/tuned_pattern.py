"""What triggers share whose pattern is tuned as the run goes on: wherever it was stamped, that of the moment is painted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fl_lightning.attacks.base import Attack, Attacker, check_fraction
from fl_lightning.attacks.picture_trigger import images_for, one_raw, painted, raw_range, two_values, values_within
from fl_lightning.attacks.pixel_trigger import Rectangle
from fl_lightning.attacks.poisoning import poison_share
from fl_lightning.attacks.target_modes import TargetMode
from fl_lightning.data.base import Samples, TensorSamples
from fl_lightning.data.in_tensors import in_tensors
from fl_lightning.data.joined import join

log = logging.getLogger(__name__)

START = 0.5
BOUND = 2.0
"""The pattern before the first round, and how far it may go, on the scale where raw pixels lie in [-2, 2]."""


class TunedPattern(Attack):
    """Base of attacks that paint a rectangle with a pattern of their own, which a `plan` tunes and keeps within its range.

    Of a malicious client's samples, of whatever class, a random share gets the pattern and the label `target_label`. ASR is
    measured on all test images whose true class is not `target_label`, with the pattern of the moment in them; before it was
    ever tuned, that is a grey rectangle. It is painted on raw pixels after augmentation and before the data's `prepare`; where
    pixels are bytes it is tuned in floats and painted rounded. Checkpoints carry it.

    Args:
        row: uppermost row, counted from 0 at the top.
        column: leftmost column, counted from 0 at the left.
        height: rows, at least 1.
        width: columns, at least 1.
        value_range: smallest and largest raw value that the pattern may take. None is 0 to 255 where pixels are bytes, else 0
            to 1.
        target_label: the class that pictures with the pattern shall be taken for.
        poison_fraction: share of an attacker's samples that is painted and relabelled, in (0, 1]; at least one sample is.
        per_batch: whether the share is one of every batch, not of the data set.
    """

    purpose: ClassVar[str]
    """Of the draw of the samples that are painted."""

    usual_fraction: ClassVar[float] = 0.25

    def __init__(
        self,
        *,
        row: int,
        column: int,
        height: int,
        width: int,
        value_range: tuple[float, float] | None,
        target_label: int,
        poison_fraction: float,
        per_batch: bool,
    ) -> None:
        self.name = type(self).__name__
        check_fraction(f"{self.name}.poison_fraction", poison_fraction, usual=self.usual_fraction)
        self.place = Rectangle(row, column, height, width, name=self.name)
        self.value_range = two_values(f"{self.name}.value_range", value_range)
        self.target_label = self._target = target_label
        self._targets = TargetMode("all_to_one", target_label, None, self.name)
        self.poison_fraction = poison_fraction
        self.per_batch = per_batch
        self.pattern: Tensor | None = None  # (C, height, width) float32 in raw scale, once it is known what images are like

    def validate(self, num_classes: int) -> None:
        self._targets.check(num_classes)

    def poison(self, dataset: Samples, attacker: Attacker) -> Samples:
        data = self._images(dataset)

        def write(rows: Tensor) -> Samples:
            return painted(data, [self.paint], rows, self._targets.wanted(data.targets))

        every, share = torch.arange(len(data)), self.poison_fraction
        return poison_share(data, every, share, attacker, self.purpose, write, per_batch=self.per_batch)

    def stamp(self, test: Samples) -> Samples | None:
        data = self._images(test)
        data = data.subset(self._targets.attacked(data.targets))
        if not len(data):
            return None
        self._warn_of_range(data)
        return painted(data, [self.paint], torch.arange(len(data)), self._targets.wanted(data.targets))

    def paint(self, images: Tensor) -> Tensor:
        """Images (b, C, H, W) with the pattern of the moment in them."""
        assert self.pattern is not None
        if self.pattern.device != images.device:
            with torch.inference_mode(False):  # evaluation may ask first, but the pattern is tuned further
                self.pattern = self.pattern.to(images.device)
        return self._painted(images, self.pattern if images.is_floating_point() else self.pattern.round())

    # ---- for those who tune it ---------------------------------------------------------------------------------------

    def _tunable(self, module: nn.Module, datasets: Sequence[Samples]) -> tuple[TensorSamples, Tensor, float, float]:
        """The samples with float inputs, where the module is; the pattern, likewise; and the bounds of its values."""
        data = in_tensors(self._images(join(datasets)), f"{self.name} tunes its pattern on them again and again")
        data = data.to(next(module.parameters()).device)
        low, high = self._range(data.inputs)
        data = data.with_inputs(data.inputs.float())  # a byte has no gradient
        assert self.pattern is not None
        return data, self.pattern.to(data.inputs.device).detach(), low, high

    def _with_pattern(self, data: TensorSamples, pattern: Tensor) -> TensorSamples:
        """All samples with a pattern; gradients pass to it."""
        every = torch.ones(len(data), dtype=torch.bool, device=data.inputs.device)
        return data.stamped(partial(self._painted, pattern=pattern), every)

    def _painted(self, images: Tensor, pattern: Tensor) -> Tensor:
        """Images with a pattern (C, height, width) in them; gradients pass to the pattern."""
        images, p = images.clone(), self.place
        images[:, :, p.row : p.row + p.height, p.column : p.column + p.width] = pattern.to(images.dtype)
        return images

    # ---- what images are like ----------------------------------------------------------------------------------------

    def _images(self, samples: Samples) -> Samples:
        """The samples, if they are images that the pattern fits into; makes the pattern of the first ones."""
        data = images_for([self.place], samples)
        if self.pattern is None:
            images = one_raw(data)
            assert images is not None
            low, high = self._range(images)
            shape = images.shape[1], self.place.height, self.place.width
            self.pattern = torch.full(shape, low + (START + BOUND) / (2 * BOUND) * (high - low), device=images.device)
        return data

    def _range(self, images: Tensor) -> tuple[float, float]:
        """Raw values that the pattern must stay within."""
        return values_within(f"{self.name}.value_range", self.value_range, images)

    def _warn_of_range(self, data: Samples) -> None:
        """Say so if the pattern may become what no picture is: such a trigger is easier to learn."""
        images, found = one_raw(data), raw_range(data)
        if images is None or found is None:
            return
        (low, high), (least, most) = found, self._range(images)
        tolerance = 1e-3 * (high - low)
        if least < low - tolerance or most > high + tolerance:
            log.warning(
                "%s.value_range is %s, but raw pixels of the test images lie between %.3g and %.3g; set it to these numbers "
                "for a pattern such as pictures have",
                self.name,
                [least, most],
                low,
                high,
            )

    # ---- what lasts from round to round ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"pattern": self.pattern}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pattern = state["pattern"]
