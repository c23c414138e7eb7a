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
        alike = place.dtype == tensor.dtype and place.stride() == tensor.stride()
        into, given = together[place.dtype if alike else None]
        into.append(place)
        given.append(tensor)
    for into, given in together.values():
        torch._foreach_copy_(into, given)
