"""Hardening: which triggers a client of FLIP inverts, and which samples of a batch it stamps them on.

K. Zhang et al., "FLIP: A Provable Defense Framework for Backdoor Mitigation in Federated Learning", ICLR 2023,
https://arxiv.org/abs/2210.12873, and its published code. `FLIP` has the definition.

Letters: C classes; a trigger is m numbers of a mask and p of a pattern, see `trigger_inversion`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import lightning as L
import torch
from torch import Tensor

from fl_lightning.aggregators.trigger_inversion import GUARD, TriggerInversion, TriggerSpace, input_shape, mask_size
from fl_lightning.data.base import Samples
from fl_lightning.data.passes import read_batch

FEW = 5
"""Samples per class that a universal trigger is inverted on. Classes with no more than these are not worked on."""

READ_AT_ONCE = 512
"""Samples, when the range of their values is sought."""


class TriggerMemory:
    """What a client keeps between rounds: views of a flat (P,) vector, so that changing them changes it.

    P = C^2 (m + p + 2) + 1. All zeros is a client that was never trained.

    Attributes:
        triggers: (C, C, m + p) float32 in [0, 1]; [s, t] takes samples of class s for class t.
        sizes: (C, C), the sums of their masks; 0 where none has been found.
        growth: (C, C), how much they have grown lately, by which pairs are chosen.
        warm: (1,), the number of classes that a universal trigger has been sought for.
    """

    def __init__(self, memory: Tensor, shape: tuple[int, ...], num_classes: int) -> None:
        pairs, width = num_classes**2, mask_size(shape) + math.prod(shape)
        triggers, sizes, growth, self.warm = memory.split([pairs * width, pairs, pairs, 1])
        self.triggers = triggers.view(num_classes, num_classes, width)
        self.sizes = sizes.view(num_classes, num_classes)
        self.growth = growth.view(num_classes, num_classes)

    @staticmethod
    def size(shape: tuple[int, ...], num_classes: int) -> int:
        """P, for inputs of that shape.

        >>> TriggerMemory.size((3, 32, 32), 10)
        409801
        """
        return num_classes**2 * (mask_size(shape) + math.prod(shape) + 2) + 1

    def remember_universal(self, sources: Sequence[int], target: int, trigger: Tensor, size: Tensor) -> None:
        """A trigger (m + p,) that takes samples of all classes `sources` for `target`."""
        for source in sources:
            self.triggers[source, target] = trigger
            self.sizes[source, target] = self.growth[source, target] = size

    def finish_warm_up(self) -> None:
        """Turn sizes of universal triggers into growths of at most 1."""
        self.growth /= self.growth.max().clamp(min=torch.finfo(torch.float32).tiny)

    def remember(self, pair: tuple[int, int], trigger: Tensor, size: Tensor) -> None:
        """The trigger of a pair, found again or for the first time."""
        last = self.sizes[pair]
        self.growth[pair] = (self.growth[pair] + torch.where(last > 0, (size - last) / last, 0.0)) / 2
        self.triggers[pair] = trigger
        self.sizes[pair] = size

    def forgo(self, pair: tuple[int, int]) -> None:
        """The pair was tried in vain: what is known of it stays, and it comes up less soon."""
        self.growth[pair] /= 2


@dataclass
class Hardening:
    """One client's hardening in one round.

    Attributes:
        module: the model that triggers are inverted from.
        samples: of the client.
        num_classes: C.
        generator: CPU generator of this client and round.
        flat_memory: (P,) float32, of this client.
        inversion: how triggers are found.
        stamp_fraction: share of the eligible samples that is stamped.
        random_fraction: probability that a pair is drawn.
        max_coverage: largest mean of a pair's mask.
        again: the pair that stays for another step, and whether its triggers were found; None where another is chosen.
    """

    module: L.LightningModule
    samples: Samples
    num_classes: int
    generator: torch.Generator
    flat_memory: Tensor
    inversion: TriggerInversion
    stamp_fraction: float
    random_fraction: float
    max_coverage: float
    again: tuple[tuple[int, int], bool] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.device = self.flat_memory.device
        self.space = value_range(self.samples, self.device)
        self.memory = TriggerMemory(self.flat_memory, self.space.shape, self.num_classes)
        self.num_warm = int(self.memory.warm)

    def stamp(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        """A batch, (b, ...) and (b,) int64, with triggers on some of its samples; and on how many."""
        classes = targets.cpu()  # which rows are taken is decided there, where the generator is
        if self.num_warm < self.num_classes:
            rows, triggers = self.universal(self.num_warm, classes)
            self.num_warm += 1
            self.memory.warm.fill_(self.num_warm)
            if self.num_warm == self.num_classes:
                self.memory.finish_warm_up()
        else:
            rows, triggers = self.pairwise(inputs, classes)
        # As many of either class, so that stamping does not tell them apart.
        count = math.floor(self.stamp_fraction * min(map(len, rows), default=0) + GUARD)
        for of_trigger, trigger in zip(rows, triggers, strict=True):
            drawn = of_trigger[torch.randperm(len(of_trigger), generator=self.generator)[:count]].to(self.device)
            inputs = inputs.index_copy(0, drawn, self.space.stamp(inputs[drawn], trigger))
        return inputs, count * len(triggers)

    # ---- warm-up -----------------------------------------------------------------------------------------------------

    def universal(self, target: int, classes: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Rows of the batch that may carry a trigger, and the trigger: from all other classes to `target`."""
        few = self.few[self.classes[self.few] != target]
        if not len(few):
            return [], []
        inputs, _ = read_batch(self.samples, few, self.device)
        start = self.inversion.fresh(self.space.shape, self.generator).to(self.device)
        steps, cost = self.inversion.warmup_steps, self.inversion.cost
        found = self.inversion.invert(self.module, self.space, [inputs], [target], start[None], steps=steps, cost=cost)
        if not found.sizes.isfinite().item():
            return [], []
        self.memory.remember_universal(self.classes[few].unique().tolist(), target, found.triggers[0], found.sizes[0])
        return [torch.nonzero(classes != target).flatten()], [found.triggers[0]]

    @cached_property
    def classes(self) -> Tensor:
        """(n,) int64 on the CPU, of the client's samples."""
        return self.samples.targets.cpu()

    @cached_property
    def few(self) -> Tensor:
        """Five samples, drawn, of every class that has more."""
        order = torch.randperm(len(self.samples), generator=self.generator)
        of_classes = [order[self.classes[order] == c] for c in range(self.num_classes)]
        return torch.cat([rows[:FEW] if len(rows) > FEW else rows[:0] for rows in of_classes])

    # ---- pairs of classes --------------------------------------------------------------------------------------------

    def pairwise(self, inputs: Tensor, classes: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Rows of the batch that may carry triggers, and these: from one class to another, and back if both are there."""
        sources = [c for c, count in enumerate(torch.bincount(classes).tolist()) if count > FEW]
        if not sources:
            return [], []
        settings, again = self.inversion, self.again
        steps, cost = settings.new_steps, settings.cost
        if again is None or again[0][0] not in sources:
            again, pair = None, self.choose(sources)
        elif again[1]:
            pair, steps, cost = again[0], settings.continued_steps, settings.continued_cost
        else:
            pair, steps = again[0], settings.retry_steps
        pairs = [pair, pair[::-1]] if pair[1] in sources else [pair]
        rows = [torch.nonzero(classes == source).flatten() for source, _ in pairs]
        inverted = settings.invert(
            self.module,
            self.space,
            [inputs[of_source.to(self.device)] for of_source in rows],
            [target for _, target in pairs],
            torch.stack([self.start(*pair) for pair in pairs]),
            steps=steps,
            cost=cost,
        )
        usable = (inverted.sizes <= self.max_coverage * self.space.mask_size).tolist()
        for i, pair_ in enumerate(pairs):
            if usable[i]:
                self.memory.remember(pair_, inverted.triggers[i], inverted.sizes[i])
            else:
                self.memory.forgo(pair_)
        self.again = (pair, all(usable)) if again is None else None
        kept = [i for i in range(len(pairs)) if usable[i]]
        return [rows[i] for i in kept], [inverted.triggers[i] for i in kept]

    def choose(self, sources: Sequence[int]) -> tuple[int, int]:
        """A class of `sources` and another of all classes: drawn, or the pair whose trigger has lately grown most."""
        if torch.rand((), generator=self.generator) < self.random_fraction:
            source = sources[int(torch.randint(len(sources), (), generator=self.generator))]
            other = int(torch.randint(self.num_classes - 1, (), generator=self.generator))
            return source, other + (other >= source)
        growth = self.memory.growth.cpu().clone().fill_diagonal_(-math.inf)[sources]
        row, target = divmod(int(growth.argmax()), self.num_classes)
        return sources[row], target

    def start(self, source: int, target: int) -> Tensor:
        """(m + p,): where this client left the pair's trigger, or a fresh one."""
        if self.memory.sizes[source, target] > 0:
            return self.memory.triggers[source, target]
        return self.inversion.fresh(self.space.shape, self.generator).to(self.device)


def value_range(samples: Samples, device: torch.device) -> TriggerSpace:
    """The triggers between the smallest and the largest value that model inputs have in a channel or feature."""
    shape = input_shape(read_batch(samples, torch.arange(1), device)[0])
    lows, highs = [], []
    for indices in torch.arange(len(samples)).split(READ_AT_ONCE):
        inputs, _ = read_batch(samples, indices, device)
        others = (0, 2, 3) if inputs.ndim == 4 else (0,)
        lows.append(inputs.amin(others, keepdim=True)[0].float())
        highs.append(inputs.amax(others, keepdim=True)[0].float())
    return TriggerSpace(shape, torch.stack(lows).amin(0), torch.stack(highs).amax(0))
