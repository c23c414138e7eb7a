"""A module's parts and the parameters that are trained, found sooner than `nn.Module` finds them."""

from collections.abc import Iterable

from torch import nn


def parts_of(module: nn.Module) -> list[nn.Module]:
    """What `module.modules()` gives, in the same order: each part once, before those inside it.

    Example:
        >>> [type(part).__name__ for part in parts_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))]
        ['Sequential', 'Linear', 'ReLU']
    """
    found: dict[nn.Module, None] = {}

    def visit(part: nn.Module) -> None:
        if part not in found:
            found[part] = None
            for inner in part._modules.values():
                if inner is not None:
                    visit(inner)

    visit(module)
    return list(found)


def trainable(parts: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Those of a module's own parts that ask for gradients, each once, in the order of `module.parameters()`.

    Args:
        parts: `parts_of(module)`. For every client of a round somebody asks; to walk through names takes four times as long.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> [parameter.shape for parameter in trainable(parts_of(layer))]
        [torch.Size([2, 2]), torch.Size([2])]
    """
    found = dict.fromkeys(p for part in parts for p in part._parameters.values())
    return [p for p in found if p is not None and p.requires_grad]
