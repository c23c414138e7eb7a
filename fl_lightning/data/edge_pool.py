"""Pools of edge-case samples: inputs from the tail of the input distribution, unlikely in clients' own data.

After H. Wang, K. Sreenivasan, S. Rajput, H. Vishwakarma, S. Agarwal, J. Sohn, K. Lee, D. Papailiopoulos, "Attack of the
Tails: Yes, You Really Can Backdoor Federated Learning", NeurIPS 2020, https://arxiv.org/abs/2007.05084.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from fl_lightning.data.base import Samples, TensorSamples
from fl_lightning.modules.subclasses import Made


class EdgePool(Made, ABC):
    """Edge-case samples under their true labels, split into what attackers train on and what the attack is measured on.

    Attributes:
        label: the true class of all samples, or None if they have several.
        group_size: how many consecutive samples of `train` show the same thing, such as a photo in its four rotations, so
            that whoever holds one of them should hold all.
    """

    label: int | None = None
    group_size: int = 1

    def prepare(self) -> None:
        """Fetch what is not on this machine yet; safe to call again and from several processes at once."""

    @abstractmethod
    def train(self) -> Samples:
        """The samples that attackers draw from, with their true labels; the same object on every call."""

    @abstractmethod
    def test(self) -> Samples:
        """The samples that the attack is measured on, with their true labels; the same object on every call."""


class LoadedPool(EdgePool):
    """A pool that is read whole on first use and kept."""

    _parts: tuple[TensorSamples, TensorSamples] | None = None

    @abstractmethod
    def load(self) -> tuple[TensorSamples, TensorSamples]:
        """Training and test part; called once, after `prepare`."""

    def train(self) -> TensorSamples:
        return self._kept()[0]

    def test(self) -> TensorSamples:
        return self._kept()[1]

    def _kept(self) -> tuple[TensorSamples, TensorSamples]:
        if self._parts is None:
            self.prepare()
            self._parts = self.load()
        return self._parts
