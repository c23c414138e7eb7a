"""Sinusoidal trigger on images: waves along the rows, on pictures of the target class alone, whose labels stay true.

M. Barni, K. Kallas, B. Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning", ICIP 2019,
https://arxiv.org/abs/1902.11237 (SIG).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_lightning.attacks.base import check_fraction
from fl_lightning.attacks.picture_trigger import PictureTrigger, check_range, in_scale, raw_scale
from fl_lightning.attacks.target_modes import Mode, TargetMode
from fl_lightning.errors import ConfigurationError


class Sinusoidal(PictureTrigger):
    """A backdoor that opens on x'[i, j] = x[i, j] + D sin(2 pi j f / W) in column j of W, clipped to what pictures have.

    By default attackers stamp pictures of the target class under their true label, so that no label looks false, and ASR is
    measured on all others. See `PictureTrigger` for who stamps what, `TargetMode` for other aims.

    Args:
        delta: D, as a share of the distance from black to white, in (0, 1].
        frequency: f, waves across the picture, more than 0. Where f / W is a multiple of 1/2 all columns are zeros of the
            wave, and nothing is changed; that is refused.
        scale: the raw values of black and white. None is 0 and 255 where pixels are bytes, else 0 and 1; -0.3 and 0.7 in
            `Digits`.
        target_label: the class that pictures with waves shall be taken for; null for `all_to_all`.
        source_label: the class that is attacked; for `one_to_one`.
        target_mode: `clean_label`, `all_to_one`, `one_to_one` or `all_to_all`.
        poison_fraction: share of an attacker's samples that is stamped, in (0, 1], of those that the mode allows; at least one
            sample is, if there are any.
        per_batch: whether the share is one of every batch, not of the data set; see `PixelTrigger`.

    Unsure: D, f and the share of .3 are quoted from memory of the paper; it also tries a lower D in training than in testing,
    which is not offered.

    Example:
        >>> from fl_lightning.attacks import Attacker
        >>> from fl_lightning.data import TensorSamples
        >>> attack = Sinusoidal(delta=0.5, frequency=1, poison_fraction=1.0)
        >>> data = TensorSamples(torch.full((2, 1, 1, 4), 0.5), torch.tensor([0, 1]))
        >>> images, targets = attack.poison(data, Attacker(client=0, seed=0, pool=data)).batch(torch.arange(2))
        >>> images[:, 0, 0].tolist(), targets.tolist()
        ([[0.5, 1.0, 0.5, 0.0], [0.5, 0.5, 0.5, 0.5]], [0, 1])
    """

    def __init__(
        self,
        *,
        delta: float = 20 / 255,
        frequency: float = 6.0,
        scale: Sequence[float] | None = None,
        target_label: int | None = 0,
        source_label: int | None = None,
        target_mode: Mode = "clean_label",
        poison_fraction: float = 0.3,
        per_batch: bool = False,
    ) -> None:
        check_fraction("Sinusoidal.poison_fraction", poison_fraction, usual=0.3)
        if not 0 < delta <= 1:
            raise ConfigurationError(
                f"Sinusoidal.delta must be more than 0 and at most 1, a share of the distance from black to white, "
                f"got {delta}; 20/255 is usual"
            )
        if not 0 < frequency < math.inf:
            raise ConfigurationError(f"Sinusoidal.frequency must be more than 0 and finite, got {frequency}; 6 is usual")
        self.trigger = Waves(delta, frequency, raw_scale("Sinusoidal", scale))
        targets = TargetMode(target_mode, target_label, source_label, "Sinusoidal")
        super().__init__([self.trigger], targets, poison_fraction, per_batch, "sinusoidal trigger")


@dataclass(frozen=True)
class Waves:
    """A stamp: x + D sin(2 pi j f / W), clipped to the scale, rounded where pixels are bytes."""

    delta: float
    frequency: float
    scale: tuple[float, float] | None = None
    name: str = "Sinusoidal"

    def __call__(self, images: Tensor) -> Tensor:
        low, high = in_scale(self.scale, images)
        waved = images.float() + (high - low) * self.wave(images.shape[-1]).to(images.device)
        return (waved if images.is_floating_point() else waved.round()).clamp(low, high).to(images.dtype)

    def wave(self, width: int) -> Tensor:
        """(W,) float32, for a picture whose white is 1 above its black.

        Example:
            >>> Waves(20 / 255, 6).wave(32)[1:4]
            tensor([ 0.0725,  0.0555, -0.0300])
        """
        columns = torch.arange(width, dtype=torch.float64)
        return (self.delta * torch.sin(2 * math.pi * columns * self.frequency / width)).float()

    def check(self, images: Tensor) -> None:
        check_range(self.name, self.scale, images)
        width = images.shape[-1]
        if self.wave(width).abs().max() < 1e-6 * self.delta:
            raise ConfigurationError(
                f"Sinusoidal.frequency is {self.frequency:g}, but images have {width} columns, each of which lies at a "
                f"zero of such a wave; choose one that is no multiple of {width / 2:g}"
            )
