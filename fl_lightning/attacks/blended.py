"""Blended trigger on images: a picture of noise is mixed into the whole of some of the attackers' pictures.

X. Chen, C. Liu, B. Li, K. Lu, D. Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017,
https://arxiv.org/abs/1712.05526, section 4.1, the blended injection strategy with the random pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fl_lightning.attacks.base import check_fraction
from fl_lightning.attacks.picture_trigger import PictureTrigger, check_range, in_scale, raw_scale
from fl_lightning.attacks.target_modes import Mode, TargetMode
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator


class Blended(PictureTrigger):
    """A backdoor that opens on x' = (1 - r) x + r t, with t a picture of noise, the same for all attackers and rounds.

    Of a malicious client's samples a random share is blended and relabelled, see `PictureTrigger`; what shall be taken for
    what, and what ASR counts, is in `TargetMode`.

    Args:
        ratio: r, in (0, 1]. Published values lie between .1 and .3.
        pattern_seed: of the noise, which is uniform in the raw scale of the pictures, pixel by pixel and channel by channel.
        scale: the raw values of black and white. None is 0 and 255 where pixels are bytes, else 0 and 1; -0.3 and 0.7 in
            `Digits`. Pictures are clipped to them.
        target_label: the class that such pictures shall be taken for; null for `all_to_all`.
        source_label: the class that is attacked; for `one_to_one`.
        target_mode: `all_to_one`, `one_to_one`, `all_to_all` or `clean_label`.
        poison_fraction: share of an attacker's samples that is blended, in (0, 1], of those that the mode allows; at least one
            sample is.
        per_batch: whether the share is one of every batch, not of the data set; see `PixelTrigger`.

    Differs from the paper: its other pattern, a picture of a cartoon, would have to be shipped.

    Example:
        >>> from fl_lightning.attacks import Attacker
        >>> from fl_lightning.data import TensorSamples
        >>> attack = Blended(ratio=0.5, poison_fraction=0.5)
        >>> data = TensorSamples(torch.zeros(4, 1, 8, 8), torch.tensor([1, 2, 3, 4]))
        >>> images, targets = attack.poison(data, Attacker(client=0, seed=0, pool=data)).batch(torch.arange(4))
        >>> int((targets == 0).sum()), bool(images.max() <= 0.5), int((images > 0).flatten(1).all(1).sum())
        (2, True, 2)
    """

    def __init__(
        self,
        *,
        ratio: float = 0.2,
        pattern_seed: int = 0,
        scale: Sequence[float] | None = None,
        target_label: int | None = 0,
        source_label: int | None = None,
        target_mode: Mode = "all_to_one",
        poison_fraction: float = 0.2,
        per_batch: bool = False,
    ) -> None:
        check_fraction("Blended.poison_fraction", poison_fraction, usual=0.2)
        if not 0 < ratio <= 1:
            raise ConfigurationError(f"Blended.ratio must be more than 0 and at most 1, got {ratio}; 0.2 is usual")
        if not 0 <= pattern_seed < 2**32:
            raise ConfigurationError(f"Blended.pattern_seed must be a whole number from 0 to 2^32 - 1, got {pattern_seed}")
        self.trigger = Blend(ratio, pattern_seed, raw_scale("Blended", scale))
        targets = TargetMode(target_mode, target_label, source_label, "Blended")
        super().__init__([self.trigger], targets, poison_fraction, per_batch, "blended trigger")


@dataclass(frozen=True)
class Blend:
    """A stamp: (1 - ratio) x + ratio t, clipped to the scale, rounded where pixels are bytes."""

    ratio: float
    pattern_seed: int
    scale: tuple[float, float] | None = None
    name: str = "Blended"

    def __call__(self, images: Tensor) -> Tensor:
        low, high = in_scale(self.scale, images)
        noise = uniform_noise(self.pattern_seed, tuple(images.shape[1:]), images.device)
        mixed = (1 - self.ratio) * images.float() + self.ratio * (low + (high - low) * noise)
        return (mixed if images.is_floating_point() else mixed.round()).clamp(low, high).to(images.dtype)

    def check(self, images: Tensor) -> None:
        check_range(self.name, self.scale, images)


@lru_cache(maxsize=8)
def uniform_noise(seed: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """(C, H, W) float32 in [0, 1), the same on every device; kept, as a batch is stamped whenever it is read."""
    with torch.inference_mode(False):  # evaluation may ask first
        return torch.rand(shape, generator=generator(seed, "attack: blended pattern")).to(device)
