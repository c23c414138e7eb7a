"""The focused flip: signs of chosen weights that follow a pattern, with their magnitudes as they are.

P. Fang, J. Chen, "On the Vulnerability of Backdoor Defenses for Federated Learning", AAAI 2023,
https://arxiv.org/abs/2301.08170, Section 4.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl_lightning.errors import ConfigurationError

WeightLayer = nn.Linear | nn.Conv2d


def lowest(scores: Tensor, share: float) -> Tensor:
    """Where the lowest share of the scores lies, max(1, round(share * n)) of n; of equal ones, those of lower coordinates.

    >>> lowest(torch.tensor([-0.05, -0.04, 0.06, 0.0]), 0.5)
    tensor([ True,  True, False, False])
    """
    chosen = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    count = max(1, round(share * scores.numel()))
    chosen[scores.flatten().argsort(stable=True)[:count]] = True
    return chosen.view(scores.shape)


def flipped(weights: Tensor, candidates: Tensor, signs: Tensor) -> Tensor:
    """Weights of which the candidates take other signs; those whose sign would be 0 stay.

    >>> flipped(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, True, False]), torch.tensor([-1.0, 0.0, -1.0]))
    tensor([-1.,  2.,  3.])
    """
    return torch.where(candidates & (signs != 0), weights.abs() * signs, weights)


def flipped_to_pattern(weights: Tensor, candidates: Tensor, pattern: Tensor, groups: int = 1) -> Tensor:
    """Filters of which the candidate weights take the signs of a pattern.

    The pattern is brought to the kernel's size (bilinear), and for each filter shifted and scaled to the range of its weights.
    A pattern that is the same everywhere has no signs.

    Args:
        weights: (O, C / groups, kh, kw).
        candidates: of that shape, bool.
        pattern: (C, h, w).
        groups: of the convolution.

    Returns:
        (O, C / groups, kh, kw).

    Example:
        >>> weights, pattern = torch.tensor([[[[0.5, 1.0], [-0.5, 0.2]]]]), torch.tensor([[[1.0, 0.0], [0.9, 0.8]]])
        >>> flipped_to_pattern(weights, torch.ones(1, 1, 2, 2, dtype=torch.bool), pattern)
        tensor([[[[ 0.5000, -1.0000],
                  [ 0.5000,  0.2000]]]])
    """
    sized = F.interpolate(pattern[None].float(), size=weights.shape[-2:], mode="bilinear", align_corners=False)[0]
    by_group = sized.reshape(groups, -1)  # (groups, C / groups * kh * kw)
    of_filter = by_group.repeat_interleave(len(weights) // groups, dim=0)
    low, high = of_filter.aminmax(dim=1, keepdim=True)
    least, most = weights.flatten(1).aminmax(dim=1, keepdim=True)
    scaled = least + (of_filter - low) / (high - low) * (most - least)  # 0 / 0 where it is flat
    signs = torch.where(high > low, scaled, 0.0).sign().view(weights.shape)
    return flipped(weights, candidates, signs)


def weight_layers(model: nn.Module, inputs: Tensor, who: str) -> list[tuple[str, WeightLayer]]:
    """A model's linear and 2d convolutional layers in the order of their first calls, with the names of their weights.

    Args:
        model: in eval mode.
        inputs: (b, ...) as the model takes them.
        who: asks, for messages.

    Raises:
        ConfigurationError: fewer than two of them are called.
    """
    found: dict[str, WeightLayer] = {}
    handles = []
    for name, part in model.named_modules():
        if isinstance(part, WeightLayer):

            def note(layer: WeightLayer, *_: object, name: str = name) -> None:
                found.setdefault(f"{name}.weight" if name else "weight", layer)

            handles.append(part.register_forward_pre_hook(note))
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if len(found) < 2:
        raise ConfigurationError(
            f"{who} needs a model whose forward calls at least two linear or 2d convolutional layers, but "
            f"{type(model).__name__} calls {len(found)}; use another model, or another attack"
        )
    return list(found.items())


def mean_difference(model: nn.Module, layer: WeightLayer, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """By how much a layer's inputs differ on average between two versions of the samples.

    Args:
        model: in eval mode.
        layer: of the model; its first call counts.
        batches: of inputs (b, ...) with the trigger, and without it.

    Returns:
        (C, H, W) of a convolution, (features,) of a linear layer, float32.
    """
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))

    def added(inputs: Tensor) -> Tensor:
        seen.clear()
        model(inputs)
        whole = seen[0].double()
        return whole.flatten(0, -2).sum(0) if isinstance(layer, nn.Linear) else whole.sum(0)

    total, count = torch.zeros((), dtype=torch.float64, device=layer.weight.device), 0
    try:
        for stamped, clean in batches:
            total = total + added(stamped) - added(clean)
            count += len(clean)
    finally:
        handle.remove()
    return (total / count).float()
