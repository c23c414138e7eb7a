"""A client's trainable parameters, their gradients and momenta as one vector each, so that SGD's step is a few operations.

A small network's step spends a fifth of its time on parameters one by one, most of which are biases. Every number is treated
by itself, so that the bits are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fl_lightning.modules.traced_graphs import NotRecordableError

ALIGNMENT_BYTES = 512
"""PyTorch's on a GPU, and more than its 64 on a CPU: matrix products may take other ways on other addresses."""


class FlatState:
    """Room for parameters of given shapes and strides; what lies between two of them is zero.

    Args:
        like: P parameters of one type, on one device.
        remembers: whether momenta are kept.

    Attributes:
        parameters, gradients: (D,) each; their values are left open.
        momenta: (D,), or (0,) where none are kept.
        places: views of `parameters`, P of them, as the given ones look.
        gradient_places: the same of `gradients`.

    Raises:
        NotRecordableError: for parameters that cannot be laid out so.
    """

    def __init__(self, like: Sequence[Tensor], remembers: bool) -> None:
        if len({(p.dtype, p.device) for p in like}) > 1:
            raise NotRecordableError("its parameters are of several types, or on several devices")
        if any(torch.empty_like(p).stride() != p.stride() for p in like):
            raise NotRecordableError("the numbers of one of its parameters share memory, or do not lie side by side")
        step = ALIGNMENT_BYTES // like[0].element_size()
        self.starts, length = [], 0
        for p in like:
            self.starts.append(length)
            length += -(-p.numel() // step) * step
        self.ends = [*self.starts[1:], length]
        self.looks = [(p.shape, p.stride()) for p in like]
        self.parameters, self.gradients = like[0].detach().new_zeros(2, length)
        self.momenta = self.parameters.new_zeros(length if remembers else 0)
        self.places, self.gradient_places = self._views(self.parameters), self._views(self.gradients)

    def _views(self, vector: Tensor) -> list[Tensor]:
        return [
            vector[start : start + shape.numel()].as_strided(shape, stride)
            for start, (shape, stride) in zip(self.starts, self.looks, strict=True)
        ]

    def runs(self, numbers: Sequence[int]) -> Iterator[slice | None]:
        """The parts of the vectors that hold the parameters of these numbers; None for all of them.

        >>> list(FlatState([torch.zeros(3), torch.zeros(2), torch.zeros(1)], False).runs([2, 0]))
        [slice(0, 128, None), slice(256, 384, None)]
        """
        left = sorted(numbers)
        if len(left) == len(self.starts):
            yield None
            return
        while left:
            first = last = left.pop(0)
            while left and left[0] == last + 1:
                last = left.pop(0)
            yield slice(self.starts[first], self.ends[last])


def look(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]:
    """What a view must be like to stand in a tensor's place."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device
