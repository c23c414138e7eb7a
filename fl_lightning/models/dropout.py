"""Dropout whose masks are drawn byte by byte: eight numbers a draw of the generator on a CPU, where drawing is what it costs.

N. Srivastava, G. Hinton, A. Krizhevsky, I. Sutskever, R. Salakhutdinov, "Dropout: A Simple Way to Prevent Neural Networks from
Overfitting", JMLR 15, 2014, https://jmlr.org/papers/v15/srivastava14a.html.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl_lightning.errors import ConfigurationError

VALUES = 256
"""Of a byte."""

MOST = 2**63 - 1
"""Eight bytes are drawn from -MOST to MOST - 1, all but two of their values, so that a byte is uniform up to 2^-62."""


class ByteDropout(nn.Module):
    """In training every number is zero with probability p, independently, else divided by 1 - p; in evaluation nothing changes.

    The masks are not those of `nn.Dropout` with the same seed. On a GPU they are, as drawing costs next to nothing there.

    Args:
        p: a multiple of 1/256 in [0, 1), so that a byte decides.

    Example:
        >>> torch.manual_seed(0).initial_seed()
        0
        >>> sorted(set(ByteDropout(0.25)(torch.ones(100)).tolist())) == [0.0, float(torch.tensor(1 / 0.75))]
        True
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1 or p * VALUES % 1:  # NaN neither
            raise ConfigurationError(f"ByteDropout.p must be a multiple of 1/{VALUES} in [0, 1), got {p}")
        self.p = p

    def forward(self, inputs: Tensor) -> Tensor:
        """(...) of any floating-point type to the same."""
        if not self.training or not self.p:
            return inputs
        if not inputs.is_cpu:
            return F.dropout(inputs, self.p)
        n = inputs.numel()
        drawn = torch.randint(-MOST, MOST, (-(-n // 8),))
        drawn = torch.view_copy(drawn, dtype=torch.uint8)  # a copy, as TorchScript, which replays recorded steps, knows no view
        kept = drawn[:n].view(inputs.shape) >= int(self.p * VALUES)
        return inputs * kept.to(inputs.dtype).mul_(1 / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"
