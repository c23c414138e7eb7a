"""Division that gives the same bits on every device."""

from torch import Tensor


def divide_(tensor: Tensor, by: int) -> Tensor:
    """Divide in place, rounded as IEEE 754 has it. Given a plain number, PyTorch multiplies by its reciprocal on a GPU.

    Args:
        tensor: of floating point; on the CPU or a GPU.
        by: not 0.

    Example:
        >>> divide_(torch.tensor([1.0, 2.0]), 4)
        tensor([0.2500, 0.5000])
    """
    return tensor.div_(tensor.new_full((), by))
