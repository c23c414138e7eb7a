"""Memory is taken as it comes, not filled first.

Where algorithms have to be deterministic, PyTorch fills every new tensor with NaN, so that what is read before it was written
is at least the same each time (`torch.utils.deterministic`). That is for finding mistakes, and a third of a GPU's step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.utils.deterministic


@contextmanager
def unfilled() -> Iterator[None]:
    """New tensors are not filled inside; a decorator too."""
    settings: Any = torch.utils.deterministic
    before = settings.fill_uninitialized_memory
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = before
