"""What attacks that build on others do with them: find those before them in the list, and poison data as they do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from fl_lightning.attacks.base import Attack, Attacker, draw_share
from fl_lightning.data.base import Samples
from fl_lightning.errors import ConfigurationError


def before(attack: Attack, attacks: Sequence[Attack]) -> list[Attack]:
    """The attacks that stand before this very one in the list."""
    return list(attacks[: next(i for i, other in enumerate(attacks) if other is attack)])


def after(attack: Attack, attacks: Sequence[Attack]) -> list[Attack]:
    """Those that stand after it."""
    return list(attacks[len(before(attack, attacks)) + 1 :])


def poisoned_by(attacks: Sequence[Attack], datasets: Sequence[Samples], attackers: Sequence[Attacker]) -> list[Samples]:
    """The attackers' training data after these attacks, as in a round; `datasets` are clean, one per attacker."""
    made = list(datasets)
    for attack in attacks:
        made = attack.conspire(made, attackers)
    return made


def pairs(
    samples: Samples, batch_size: int, draws: torch.Generator | None, device: torch.device, who: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over the samples: inputs (b, ...) and classes (b,), in batches of about the same size, of at most `batch_size`.

    Args:
        samples: at least one.
        batch_size: at least 1.
        draws: CPU generator of a random order and of augmentation; in order, and without augmentation, where left out.
        device: where they go.
        who: asks, for messages.

    Raises:
        ConfigurationError: a batch is no pair of inputs and classes.
    """
    n = len(samples)
    order = torch.arange(n) if draws is None else torch.randperm(n, generator=draws)
    # Even ones, as BatchNorm cannot train on a last single sample.
    sizes = [len(part) for part in order.tensor_split(math.ceil(n / batch_size))]
    for batch in samples.batches(order, sizes, draws):
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor)):
            raise ConfigurationError(
                f"{who} trains on batches (inputs, classes) by cross entropy, but those of this task are of type "
                f"{type(batch).__name__}; use a data set that yields such pairs, or leave {who} out"
            )
        inputs, targets = move_data_to_device(tuple(batch), device)
        yield inputs, targets


def refuse(attack: Attack, others: Sequence[Attack], when: Callable[[Attack], bool], why: str) -> None:
    """Raise `ConfigurationError` if any of the others is of the kind that this attack does not go with."""
    for other in others:
        if when(other):
            raise ConfigurationError(f"{type(attack).__name__} and {type(other).__name__} do not go together so: {why}")


def divided(samples: Samples, share: float, draws: torch.Generator) -> tuple[Samples, Samples]:
    """All but a random share of the samples, and that; two are left, on which BatchNorm can train, if there are two."""
    held = draw_share(len(samples), share, draws)[: max(0, len(samples) - 2)]
    keep = torch.ones(len(samples), dtype=torch.bool)
    keep[held] = False
    return samples.subset(keep.nonzero().flatten()), samples.subset(held)
