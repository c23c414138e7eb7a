"""The parameters that are trained, found sooner than `nn.Module.parameters` finds them."""

from collections.abc import Iterable

from torch import nn


def trainable(parts: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Those of a module's own parts that ask for gradients, each once, in the order of `module.parameters()`.

    Args:
        parts: `module.modules()`. For every client of a round somebody asks; to walk through names takes four times as long.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> [parameter.shape for parameter in trainable(layer.modules())]
        [torch.Size([2, 2]), torch.Size([2])]
    """
    found = dict.fromkeys(p for part in parts for p in part._parameters.values())
    return [p for p in found if p is not None and p.requires_grad]
