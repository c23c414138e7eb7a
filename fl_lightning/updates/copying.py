"""Copies of many tensors at once."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor


def copy_each(places: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Copy tensors into places of the same shapes, whatever their types and strides.

    On a GPU a copy of its own for each takes longer than what is copied. Of tensors that lie in memory as their places do,
    those of one type are copied together there; `torch._foreach_copy_` goes one by one as soon as one of them does not.

    Example:
        >>> place = torch.zeros(2)
        >>> copy_each([place], [torch.ones(2)])
        >>> place
        tensor([1., 1.])
    """
    if not places or not places[0].is_cuda:
        if places:
            torch._foreach_copy_(list(places), list(tensors))
        return
    together: dict[object, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    for place, tensor in zip(places, tensors, strict=True):
        same_strides = place.stride() == tensor.stride()
        alike = place.dtype == tensor.dtype and (same_strides or lie_alike(place, tensor))
        into, given = together[place.dtype if alike else None]
        into.append(place)
        given.append(tensor.as_strided(place.shape, place.stride()) if alike and not same_strides else tensor)
    for into, given in together.values():
        torch._foreach_copy_(into, given)


def lie_alike(a: Tensor, b: Tensor) -> bool:
    """Whether the numbers of two tensors of one shape follow each other alike, whatever strides axes of length 1 have.

    >>> weight = torch.zeros(4, 3, 1, 1)
    >>> lie_alike(weight, weight.to(memory_format=torch.channels_last))
    True
    """
    return all(n == 1 or s == t for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True))
